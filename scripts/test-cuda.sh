#!/usr/bin/env bash
# Builds this checkout with CUDA, on a machine without a GPU as well: in a clone of its own, so
# that the libtorch of the calling checkout stays as it is. Compiles and links the NCCL plug-in,
# loads libtorch's CUDA half, and checks what users are told where there is no GPU. Where
# there is one, the tests of several processes run with NCCL too.
#
#   scripts/test-cuda.sh            2.3 GB to download once (into the cache of scripts/setup.sh)
#   scripts/test-cuda.sh --keep     leaves the clone and its build, named at the end
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case "${1:-}" in
  '' | --keep) ;;
  *) sed -n '2,8s/^# \{0,1\}//p' "$0"; [ "$1" = -h ] || [ "$1" = --help ] && exit 0 || exit 2 ;;
esac

scratch="$(mktemp -d)"
if [ "${1:-}" = --keep ]; then trap 'echo "left in $scratch"' EXIT; else trap 'rm -rf "$scratch"' EXIT; fi
clone="$scratch/backpack"
git clone --quiet . "$clone"
# What is not committed yet is tested too.
git diff HEAD --binary | git -C "$clone" apply --allow-empty
cd "$clone"
unset LIBTORCH BACKPACK_NCCL_PLUGIN
failures=0
check() { # WHAT PATTERN TEXT
  if grep -Eq -- "$2" <<<"$3"; then
    printf 'ok      %s\n' "$1"
  else
    printf 'FAILED  %s: no /%s/ in:\n%s\n' "$1" "$2" "$3"
    failures=$((failures + 1))
  fi
}

# First as on a CPU machine, then with CUDA: `cargo build` has to notice by itself.
scripts/setup.sh
cargo build --release --locked
said="$(target/release/backpack doctor)"
check 'doctor, CPU only: how to get CUDA' '^CUDA +not loaded .*setup.sh --cuda' "$said"
check 'doctor, CPU only: how to get NCCL' '^NCCL +the NCCL plug-in is not built: run `scripts/setup.sh --cuda`' "$said"

scripts/setup.sh --cuda
cargo build --release --locked
plugin="$(find target/release/build -name libbackpack_nccl.so)"
check 'the plug-in is built' 'libbackpack_nccl.so' "$plugin"
check 'the plug-in links libtorch_cuda' 'NEEDED.*libtorch_cuda.so' "$(readelf -d "$plugin")"
if readelf -d target/release/backpack | grep -q 'NEEDED.*cuda'; then
  echo 'FAILED  the program links CUDA'
  failures=$((failures + 1))
fi
said="$(target/release/backpack doctor)"
check 'doctor: NCCL and its version' '^NCCL +2\.[0-9]+\.[0-9]+, plug-in .*libbackpack_nccl.so' "$said"

train=(target/release/backpack train --config configs/quickstart.toml --set data.path=none --run-dir runs/none)
if grep -Eq '^CUDA +[0-9]+ GPU' <<<"$said"; then
  cargo test --release --locked -p torch-ext
else
  check 'doctor: libraries, but no GPU' '^CUDA +libraries loaded from .*libtorch_cuda.so, but no GPU or driver' "$said"
  check 'train on "cuda" says what is missing' 'error: .*"cuda".*no GPU' "$("${train[@]}" --set run.device=cuda 2>&1 || true)"
  mv "$plugin" "$plugin.away"
  check 'doctor: a lost plug-in' '^NCCL +the NCCL plug-in libbackpack_nccl.so is not where it was built' "$(target/release/backpack doctor)"
  mv "$plugin.away" "$plugin"
  said="$(cargo test --release --locked -p torch-ext --test distributed nccl_without_a_gpu -- --nocapture 2>&1 || true)"
  check 'NCCL without a GPU is an error' 'NCCL cannot start on rank 0: .*no GPUs found' "$said"
  check 'and the tests hold' 'test result: ok' "$said"
fi
# A checkout may be moved: the plug-in is found from where the executable is.
mv "$clone" "$clone.moved"
cd "$clone.moved"
check 'after a move' '^NCCL +2\.' "$(target/release/backpack doctor)"
mv "$clone.moved" "$clone"

[ "$failures" = 0 ] || { echo "test-cuda: $failures checks failed"; exit 1; }
echo 'test-cuda: all checks passed'
