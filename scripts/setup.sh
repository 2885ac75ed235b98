#!/usr/bin/env bash
# Prepares the checkout for building: checks for the tools, downloads libtorch into a cache
# outside the checkout, and links it as .libtorch.
#
#   scripts/setup.sh          libtorch for CPUs (540 MB to download, 500 MB on disk)
#   scripts/setup.sh --cuda   libtorch and its dependencies for NVIDIA GPUs (2.3 GB, 4.5 GB)
#
# The cache is ${XDG_CACHE_HOME:-~/.cache}/backpack. Every file is checked against the SHA-256 in
# scripts/libtorch/*.txt. The script can be killed and run again at any time.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
help_if_asked "${1:-}"

readonly VERSION=2.13.0 # the version that tch 0.26 is generated for
variant=cpu
case "${1:-}" in
  '') ;;
  --cuda) variant=cu13 ;;
  *) fail "unknown argument '$1': the only one is --cuda (see --help)." ;;
esac
[ $# -le 1 ] || fail "too many arguments (see --help)."

cache="${XDG_CACHE_HOME:-${HOME:?setup: HOME is not set}/.cache}/backpack"
requirements=(scripts/libtorch/cpu.txt)
# A checkout that is linked to the CUDA variant keeps it, because that variant also runs on CPUs.
if [ "$variant" = cpu ] && [ "$(readlink .libtorch || true)" = "$cache/libtorch-$VERSION-cu13" ]; then variant=cu13; fi
[ "$variant" = cpu ] || requirements+=(scripts/libtorch/cuda.txt)
home="$cache/libtorch-$VERSION-$variant"

# The tools are checked in every call, because a missing tool is the most common first error.
missing=0
need() { command -v "$1" >/dev/null 2>&1 || { printf 'setup: %s is missing: %s\n' "$2" "$3" >&2; missing=1; }; }
need cargo "Rust (cargo)" "install it from https://rustup.rs (1.95 or newer)."
need "${CXX:-c++}" "A C++ compiler (${CXX:-c++})" "install g++ (Debian, Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++)."
[ "$missing" = 0 ] || exit 1

up_to_date() { [ -f "$home/COMPLETE" ] && cat "${requirements[@]}" | cmp -s - "$home/COMPLETE"; }

if ! up_to_date; then
  [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || fail "this script supports Linux on x86_64 only, not $(uname -s) on $(uname -m): set LIBTORCH to the directory of a libtorch $VERSION and build without this script."
  need python3 "Python 3" "install it (Debian, Ubuntu: apt-get install python3 python3-pip)."
  [ "$missing" = 0 ] || exit 1
  python3 -m pip --version >/dev/null 2>&1 || fail "pip for Python 3 is missing: install it (Debian, Ubuntu: apt-get install python3-pip)."

  mkdir -p "$cache"
  exec 9>"$cache/lock"
  flock 9 # wait for another setup that may be running
  if ! up_to_date; then
    # With the lock held, these are leftovers of killed processes.
    rm -rf "$cache"/unpack.* "$cache"/wheels.*
    wheels="$cache/wheels.$$" unpack="$cache/unpack.$$"
    trap 'rm -rf "$wheels" "$unpack"' EXIT
    mkdir -p "$wheels" "$unpack"
    printf 'setup: downloading libtorch %s (%s) into %s\n' "$VERSION" "$variant" "$cache"
    # Only the libraries in the wheels are used, so the Python version of the wheel need not be
    # the version of the Python that runs pip.
    platforms=()
    for tag in 2_28 2_27 2_25 2_18 2_17 2014 2_12 2010; do
      case "$tag" in 20*) tag="manylinux$tag" ;; *) tag="manylinux_$tag" ;; esac
      platforms+=(--platform "${tag}_x86_64")
    done
    for list in "${requirements[@]}"; do
      python3 -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
        --only-binary=:all: --implementation cp --python-version 3.11 --abi cp311 --abi none --abi abi3 \
        "${platforms[@]}" \
        --dest "$wheels" --requirement "$list" ||
        fail "the download failed (see the message of pip above): check the network and pip's index, then run this script again."
    done
    python3 scripts/libtorch/unpack.py "$variant" "$unpack" "$wheels"/*.whl
    cat "${requirements[@]}" >"$unpack/COMPLETE"
    sync -f "$unpack" 2>/dev/null || sync
    rm -rf "$home"
    mv "$unpack" "$home"
  fi
fi

if [ "$(readlink .libtorch || true)" != "$home" ]; then
  [ ! -e .libtorch ] || [ -L .libtorch ] || fail ".libtorch exists and is not a link: move it away."
  # Cargo compares modification times. The new time of this file makes it rebuild against the
  # new libtorch (crates/torch-ext/build.rs).
  [ ! -L .libtorch ] || touch "$home/build-version" 2>/dev/null || true
  ln -sfn "$home" .libtorch.new && mv -T .libtorch.new .libtorch
fi
printf 'setup: ready, libtorch %s (%s)\n' "$VERSION" "$variant"
