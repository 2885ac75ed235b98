#!/usr/bin/env bash
# Makes this checkout buildable: checks the tools, fetches libtorch into a cache
# that outlives the checkout, and links it here as .libtorch.
#
#   scripts/setup.sh          libtorch for the CPU (540 MB to download, 500 MB on disk)
#   scripts/setup.sh --cuda   the same and all it needs on NVIDIA GPUs (2.3 GB, 4.5 GB)
#
# The cache is ${XDG_CACHE_HOME:-~/.cache}/backpack. Every file is checked against
# the SHA-256 in scripts/libtorch/*.txt. Safe to kill and to run again at any time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly VERSION=2.13.0 # what tch 0.26 is generated for
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

variant=cpu
case "${1:-}" in
  '') ;;
  --cuda) variant=cu13 ;;
  -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
  *) fail "unknown argument '$1': the only one is --cuda (see --help)." ;;
esac
[ $# -le 1 ] || fail "too many arguments (see --help)."

cache="${XDG_CACHE_HOME:-${HOME:?setup: HOME is not set}/.cache}/backpack"
requirements=(scripts/libtorch/cpu.txt)
# A checkout that already has the CUDA set keeps it: it serves CPUs as well.
if [ "$variant" = cpu ] && [ "$(readlink .libtorch || true)" = "$cache/libtorch-$VERSION-cu13" ]; then variant=cu13; fi
[ "$variant" = cpu ] || requirements+=(scripts/libtorch/cuda.txt)
home="$cache/libtorch-$VERSION-$variant"

# Tools: asked for on every run, since a missing one is the commonest first error.
missing=0
need() { command -v "$1" >/dev/null 2>&1 || { printf 'setup: %s is missing: %s\n' "$2" "$3" >&2; missing=1; }; }
need cargo "Rust (cargo)" "install it from https://rustup.rs (1.95 or newer)."
need "${CXX:-c++}" "A C++ compiler (${CXX:-c++})" "install g++ (Debian, Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++)."
[ "$missing" = 0 ] || exit 1

up_to_date() { [ -f "$home/COMPLETE" ] && cat "${requirements[@]}" | cmp -s - "$home/COMPLETE"; }

if ! up_to_date; then
  [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || fail "this script knows libtorch for Linux on x86_64 only; here it is $(uname -s) on $(uname -m). Set LIBTORCH to a libtorch $VERSION of your own and build without this script."
  need python3 "Python 3" "install it (Debian, Ubuntu: apt-get install python3 python3-pip)."
  [ "$missing" = 0 ] || exit 1
  python3 -m pip --version >/dev/null 2>&1 || fail "pip for Python 3 is missing: install it (Debian, Ubuntu: apt-get install python3-pip)."

  mkdir -p "$cache"
  exec 9>"$cache/lock"
  flock 9 # another set-up may be at work: wait for it, then look again
  if ! up_to_date; then
    # What a killed run left is nobody's: the lock is ours.
    rm -rf "$cache"/unpack.* "$cache"/wheels.*
    wheels="$cache/wheels.$$" unpack="$cache/unpack.$$"
    trap 'rm -rf "$wheels" "$unpack"' EXIT
    mkdir -p "$wheels" "$unpack"
    printf 'setup: fetching libtorch %s (%s) into %s\n' "$VERSION" "$variant" "$cache"
    # The wheels are only archives of libraries here, so one Python's wheel serves
    # every machine, whatever Python runs this.
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
        fail "the download failed: see pip's message above; check the network or pip's index, then run this again."
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
  # Cargo goes by times: this one tells it that another libtorch takes the place of the one
  # that was built against (torch-ext/build.rs).
  [ ! -L .libtorch ] || touch "$home/build-version" 2>/dev/null || true
  ln -sfn "$home" .libtorch.new && mv -T .libtorch.new .libtorch
fi
printf 'setup: ready, libtorch %s (%s)\n' "$VERSION" "$variant"
