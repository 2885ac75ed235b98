#!/usr/bin/env bash
# Tests the CUDA build, also on a machine without a GPU. Builds a clone of this checkout, so that
# the libtorch of the checkout stays unchanged. Compiles and links the NCCL plug-in, loads the
# CUDA libraries of libtorch, and checks the messages on a machine without a GPU. With a GPU, it
# runs the tests of torch-ext, one of which reduces over NCCL with one rank.
#
#   scripts/test-cuda.sh            downloads 2.3 GB once, into the cache of scripts/setup.sh
#   scripts/test-cuda.sh --keep     keeps the clone and its build, and prints where they are
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
help_if_asked "${1:-}"
case "${1:-}" in
  '' | --keep) ;;
  *) usage_error "unknown argument '$1'" ;;
esac

make_work_folder
if [ "${1:-}" = --keep ]; then trap 'echo "the clone is in $work"' EXIT; fi
clone="$work/backpack"
git clone --quiet . "$clone"
# Changes that are not committed are tested as well.
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

# First without CUDA, then with CUDA: `cargo build` must detect the change.
scripts/setup.sh
cargo build --release --locked
output="$(target/release/backpack doctor)"
check 'doctor, CPU only: how to get CUDA' '^CUDA +not loaded .*setup.sh --cuda' "$output"
check 'doctor, CPU only: how to get NCCL' '^NCCL .*scripts/setup.sh --cuda' "$output"

scripts/setup.sh --cuda
cargo build --release --locked
plugin="$(find target/release/build -name libbackpack_nccl.so)"
check 'the plug-in is built' 'libbackpack_nccl.so' "$plugin"
check 'the plug-in links libtorch_cuda' 'NEEDED.*libtorch_cuda.so' "$(readelf -d "$plugin")"
if readelf -d target/release/backpack | grep -q 'NEEDED.*cuda'; then
  echo 'FAILED  the program links CUDA'
  failures=$((failures + 1))
fi
output="$(target/release/backpack doctor)"
check 'doctor: NCCL and its version' '^NCCL +2\.[0-9]+\.[0-9]+, plug-in .*libbackpack_nccl.so' "$output"

train=(target/release/backpack train --config configs/quickstart.toml --set data.path=none --run-dir runs/none)
if grep -Eq '^CUDA +[0-9]+ GPU' <<<"$output"; then
  cargo test --release --locked -p torch-ext
else
  check 'doctor: libraries, but no GPU' '^CUDA .*libtorch_cuda.so.* no GPU' "$output"
  check 'train with device "cuda": what is missing' 'error: .*"cuda".*no GPU' "$("${train[@]}" --set run.device=cuda 2>&1 || true)"
  mv "$plugin" "$plugin.away"
  check 'doctor: missing plug-in' '^NCCL .*libbackpack_nccl.so.* not ' "$(target/release/backpack doctor)"
  mv "$plugin.away" "$plugin"
  output="$(cargo test --release --locked -p torch-ext --test distributed nccl_without_a_gpu -- --nocapture 2>&1 || true)"
  check 'NCCL without a GPU is an error' 'NCCL .*rank 0: .*no GPUs found' "$output"
  check 'the tests of torch-ext pass' 'test result: ok' "$output"
fi
# The program finds the plug-in relative to its own path, so the checkout may be moved.
mv "$clone" "$clone.moved"
cd "$clone.moved"
check 'the plug-in is found after a move' '^NCCL +2\.' "$(target/release/backpack doctor)"
mv "$clone.moved" "$clone"

[ "$failures" = 0 ] || { echo "test-cuda: $failures checks failed"; exit 1; }
echo 'test-cuda: all checks passed'
