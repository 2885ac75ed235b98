#!/usr/bin/env bash
# Measures data preparation: each stage alone, the whole command, and nanoGPT's recipe in Python
# (`datasets` and `tokenizers`) on the same file.
#
#   scripts/bench-data.sh FILE.parquet    measures, checks that both outputs are the same bytes, and
#                                         writes the data section of docs/measurements/benchmarks.md
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
help_if_asked "$@"
[ $# -eq 1 ] || usage_error "it takes one Parquet file"
[ -f "$1" ] || fail "$1 does not exist."
file=$(realpath "$1") tokenizer=$PWD/data/gpt2/tokenizer.json cores=$(nproc)

build_backpack
backpack=$(realpath "$backpack")
make_python_environment bench-data scripts/bench/requirements.txt
make_work_folder

stages=$(cargo bench --quiet --locked -p data-prep --bench stages -- "$file" "$tokenizer" | grep '^{')
# Prints the seconds and the peak resident bytes of a command.
cat >"$work/measure.py" <<'END'
import resource, subprocess, sys, time
start = time.monotonic()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
if done.returncode:
    sys.exit(done.stderr)
print(f"{time.monotonic() - start:.2f}", 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
END
measure() { python3 "$work/measure.py" "$@"; }
seconds() { measure "$@" | cut -d' ' -f1; }
ours=() repeats=()
inputs() { for _ in $(seq "$1"); do printf '%s\n' "$file"; done; }
for i in 1 2 3; do
  ours+=("$(seconds "$backpack" prepare-data --recipe nanogpt --input "$file" --output "$work/ours-$i")")
done
mapfile -t twenty < <(inputs 20)
for i in 1 2; do
  read -r time memory < <(measure "$backpack" prepare-data --recipe nanogpt --input "${twenty[@]}" --output "$work/many-$i")
  repeats+=("$time")
  rm -rf "$work/many-$i"
done
theirs=$(seconds "$environment/bin/python" scripts/bench/nanogpt_prepare.py "$file" "$tokenizer" "$work/theirs" "$cores")
for split in train val; do
  cat "$work/ours-1/$split"-*.bin | cmp - "$work/theirs/$split.bin"
done

OURS="${ours[*]}" MANY="${repeats[*]}" THEIRS=$theirs STAGES=$stages CORES=$cores MEMORY=$memory \
  NAME=$(basename "$file") python3 -B scripts/bench/write_data_section.py docs/measurements/benchmarks.md
