#!/usr/bin/env bash
# Tests the CUDA kernels (crates/torch-ext/cuda) on a machine without a GPU:
#
# 1. Runs them on the CPU with an emulator, which detects races and wrong barriers, and compares the
#    results with loops in double precision. Checks the emulator itself with wrong kernels first.
# 2. Compiles them with NVRTC for four GPU architectures. A kernel that spills registers is an
#    error. NVRTC (90 MB to download, 230 MB on disk) is stored once in
#    ${XDG_CACHE_HOME:-~/.cache}/backpack. If the download fails, this part is skipped with a
#    message, or fails with CI=true.
#
#   scripts/test-cuda-kernels.sh
#
# Takes about a minute on two cores, and minutes for the first build of torch-ext. Needs a C++
# compiler (CXX, default c++), Python 3 and the libtorch of scripts/setup.sh.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
help_if_asked "$@"
[ $# -eq 0 ] || usage_error "unknown argument '$1'"

cuda=$PWD/crates/torch-ext/cuda
make_work_folder
flags=(-O1 -std=c++17 -Wall -Wextra -Wno-unknown-pragmas -fPIC)
compile() { "${CXX:-c++}" "${flags[@]}" "$@"; }

# build_library KERNEL_FILE LIBRARY [MACRO=VALUE...]: with the race detector.
build_library() {
  compile -g -fsanitize=thread -DDETECT_RACES -DKERNEL_SOURCE="\"$1\"" "${@:3}" -c "$cuda/emulator/entry.cpp" -o "$2.o"
  compile -shared "$2.o" "$work/runtime.o" "$work/race_detector.o" -o "$2"
}

# check NUMBER FILE MACRO=VALUE... -- [LENGTH...]: compares the kernels of a file, for one shape.
# Writes a log, and a marker of success.
check() {
  local log=$work/$1.log library=$work/$1.so marker=$work/$1.ok file=$2 macros=() sizes=()
  shift 2
  while [ "$1" != -- ]; do
    macros+=("-D$1")
    sizes+=("${1#*=}")
    shift
  done
  if build_library "$cuda/$file.cu" "$library" "${macros[@]}" >"$log" 2>&1 &&
    "$work/check_kernels" "$file" "$library" "${sizes[@]}" "${@:2}" >>"$log" 2>&1; then
    touch "$marker"
  fi
}

jobs=$(nproc)
names=()
# start ARGUMENT...: calls `check` in the background.
start() {
  while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n || true; done
  check "${#names[@]}" "$@" &
  names+=("$*")
}

step 'the emulator detects errors'
compile -DDETECT_RACES -c "$cuda/emulator/runtime.cpp" -o "$work/runtime.o" &
compile -O2 -c "$cuda/emulator/race_detector.cpp" -o "$work/race_detector.o"
wait $!
build_library "$cuda/checks/emulator_errors.cu" "$work/emulator_errors.so" &
compile "$cuda/checks/emulator_errors.cpp" -o "$work/emulator_errors" -ldl
wait $!
"$work/emulator_errors" "$work/emulator_errors.so"

step 'the kernels compute the right results on the emulator'
sources=("$cuda"/checks/{main,cross_entropy,gelu,layer_norm,sense_weights}.cpp)
compile "${sources[@]}" -o "$work/check_kernels" -ldl
# The slowest cases first.
start sense_weights NUM_SENSES=64 MAX_LENGTH=512 WARPS=8 -- 512
start sense_weights NUM_SENSES=16 MAX_LENGTH=1024 WARPS=8 -- 513
start sense_weights NUM_SENSES=16 MAX_LENGTH=512 WARPS=8 -- 31 512
start sense_weights NUM_SENSES=4 MAX_LENGTH=512 WARPS=4 -- 64 512
start sense_weights NUM_SENSES=1 MAX_LENGTH=512 WARPS=1 -- 65 512
for senses in 1 3 4 8 12 16 64; do
  start sense_weights NUM_SENSES=$senses MAX_LENGTH=65 WARPS=$((senses < 8 ? senses : 8)) -- 1 2 31 64 65
done
start sense_weights NUM_SENSES=64 MAX_LENGTH=2048 WARPS=8 -- 130
for size in 1 7 5003 5024 50257 50264 131071 131072; do
  start cross_entropy VOCAB_SIZE=$size THREADS=512 --
done
for width in 1 2 32 33 34 384 640 768 1026 1600 3072; do
  start layer_norm WIDTH=$width WARPS=4 --
done
start gelu THREADS=128 --
wait
failed=0 checks=0
for number in "${!names[@]}"; do
  if [ -f "$work/$number.ok" ]; then
    count=$(grep -c '^ok' "$work/$number.log")
    checks=$((checks + count))
    printf 'ok      %s: %d checks\n' "${names[$number]/ --/}" "$count"
  else
    printf 'FAILED  %s:\n' "${names[$number]/ --/}"
    cat "$work/$number.log"
    failed=1
  fi
done

step 'NVRTC compiles the kernels'
requirement=$(grep '^nvidia-cuda-nvrtc==' scripts/libtorch/cuda.txt)
version=$(sed -E 's/.*==([0-9.]+).*/\1/' <<<"$requirement")
cache=${XDG_CACHE_HOME:-$HOME/.cache}/backpack
nvrtc=$cache/nvrtc-$version
mkdir -p "$cache"
exec 9>"$nvrtc.lock"
flock 9 # another process may be downloading
if [ ! -f "$nvrtc/COMPLETE" ]; then
  echo "downloading NVRTC $version into $nvrtc"
  rm -rf "$nvrtc"
  echo "$requirement" >"$work/requirements.txt"
  if python3 -m pip install --quiet --disable-pip-version-check --no-deps --root-user-action=ignore \
    --require-hashes --target "$nvrtc" -r "$work/requirements.txt"; then
    touch "$nvrtc/COMPLETE"
  fi
fi
exec 9>&-
if [ -f "$nvrtc/COMPLETE" ]; then
  python3 "$cuda/checks/compile_with_nvrtc.py" "$nvrtc/nvidia/cu13/lib" || failed=1
  # The program's own use of NVRTC.
  BACKPACK_TEST_NVRTC=$nvrtc/nvidia/cu13/lib cargo test --quiet --release --locked -p torch-ext --lib nvrtc || failed=1
elif [ "${CI:-}" = true ]; then
  fail "cannot download NVRTC $version (see the message of pip above): check the network and pip's index."
else
  echo "test-cuda-kernels: skipping NVRTC: the download failed (see the message of pip above)"
fi

[ "$failed" = 0 ] || fail 'some checks failed'
echo "test-cuda-kernels: all checks passed ($checks on the emulator)"
