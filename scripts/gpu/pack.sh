#!/usr/bin/env bash
# Prepares .gpu/ for scripts/gpu/run.sh on a GPU machine that has no Rust compiler and no network:
# the program and two of its tests (built for the torch of that machine), tokens, and the kernel
# tracer. Copy the checkout with .gpu/ to that machine. The packed program can use one process only.
#
#   scripts/gpu/pack.sh               downloads 0.6 GB once; the first build takes 10 to 30 minutes
#   scripts/gpu/pack.sh --rehearse    then runs every step on this CPU, with small sizes
#
# The GPU machine needs torch 2.11.0 with CUDA 13.0 in its Python. tch 0.24 is generated for that
# version. The build uses a clone in ${XDG_CACHE_HOME:-~/.cache}/backpack/gpu, so that the libtorch of
# this checkout stays unchanged. Changes that are not committed are built as well. After an
# interruption, run the script again.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
help_if_asked "$@"
rehearse=
case "${1:-}" in
  '') ;;
  --rehearse) rehearse=1 ;;
  *) usage_error "unknown argument '$1'" ;;
esac
[ $# -le 1 ] || usage_error "too many arguments"

readonly TORCH=2.11.0 TCH=0.24.0
root=$PWD
cache=${XDG_CACHE_HOME:-$HOME/.cache}/backpack/gpu
libtorch=$cache/libtorch-$TORCH
mkdir -p "$cache"
exec 8>"$cache/lock"
flock 8 # another process may be building

if ! cmp -s scripts/gpu/libtorch.txt "$libtorch/COMPLETE"; then
  step "Download libtorch $TORCH"
  rm -rf "$libtorch" "$cache/wheels" "$cache/unpack"
  platforms=()
  for tag in _2_28 _2_27 _2_25 _2_17 2014; do platforms+=(--platform "manylinux${tag}_x86_64"); done
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
    --only-binary=:all: --implementation cp --python-version 3.11 --abi cp311 --abi none \
    "${platforms[@]}" --dest "$cache/wheels" --requirement scripts/gpu/libtorch.txt
  mkdir "$cache/unpack"
  python3 scripts/libtorch/unpack.py cu13 "$cache/unpack" "$cache"/wheels/*.whl
  echo "$TORCH" >"$cache/unpack/build-version"
  cp scripts/gpu/libtorch.txt "$cache/unpack/COMPLETE"
  mv "$cache/unpack" "$libtorch"
  rm -rf "$cache/wheels"
fi

step "Build for torch $TORCH"
# The clone is kept, because cargo builds files with a new modification time again.
clone=$cache/checkout
[ -d "$clone/.git" ] || git init --quiet "$clone"
git -C "$clone" fetch --quiet "$root" HEAD
git -C "$clone" checkout --quiet --force --detach FETCH_HEAD
git -C "$clone" clean --quiet --force -d
git diff HEAD --binary | git -C "$clone" apply --allow-empty
git ls-files --others --exclude-standard -z | xargs -0r cp --parents -t "$clone"
ln -sfn "$libtorch" "$clone/.libtorch"
cd "$clone"
unset LIBTORCH
export CARGO_TARGET_DIR="$cache/target" CARGO_PROFILE_RELEASE_STRIP=symbols
sed -i "s/^\(tch\|torch-sys\) = \"=.*\"/\1 = \"=$TCH\"/" Cargo.toml
cargo update --quiet -p tch -p torch-sys
cargo build --release
# build_test CRATE TEST: prints the path of the program.
build_test() {
  cargo test --release -p "$1" --test "$2" --no-run --message-format=json |
    sed -n "s/.*\"executable\":\"\([^\"]*\/$2-[^\"]*\)\".*/\1/p"
}
device_test=$(build_test trainer device)
kernel_test=$(build_test torch-ext cuda_kernels)
cd "$root"

step 'Pack'
pack=.gpu
rm -rf "$pack"
mkdir -p "$pack/tests"
cp "$CARGO_TARGET_DIR/release/backpack" "$pack/backpack"
cp "$device_test" "$pack/tests/device"
cp "$kernel_test" "$pack/tests/cuda_kernels"
echo "torch $TORCH, tch $TCH, $(git describe --always --dirty)" >"$pack/built-for"
c++ -O2 -shared -fPIC -I "$libtorch/nvidia/cu13/include" scripts/gpu/kernel_trace.cpp -o "$pack/libkernel_trace.so" \
  -L "$libtorch/nvidia/cu13/lib" -l:libcupti.so.13 -Wl,--allow-shlib-undefined
LD_LIBRARY_PATH="$libtorch/torch/lib" "$pack/backpack" prepare-data --input data/demo.jsonl --output "$pack/data" --val-fraction 0.05
cat "$pack"/data/train-*.bin >"$pack/tokens.bin"
printf 'pack: %s has %d MB, and the tracked files of the checkout have %d MB\n' "$pack" \
  "$(du -sm --apparent-size "$pack" | cut -f1)" \
  "$(git ls-files -z | xargs -0 stat -c %s | awk '{ sum += $1 } END { print int(sum / 1e6) }')"

[ -n "$rehearse" ] || exit 0
step 'Rehearse on this CPU'
make_python_environment gpu/python scripts/gpu/requirements.txt --no-deps
if [ ! -f "$environment/STUBS" ]; then
  "$environment/bin/python" tests/interop/without_cuda.py \
    "$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  touch "$environment/STUBS"
fi
PYTHON=$environment/bin/python scripts/gpu/run.sh --device cpu --budget 3000
