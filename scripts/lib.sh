# Functions that the scripts in this folder share. A script sources this file first:
#
#     . "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
#
# Sourcing it changes to the root of the checkout and sets `script`, the name of the calling
# script without `.sh`.
# shellcheck shell=bash
script_file=$(realpath "${BASH_SOURCE[1]}")
script=$(basename "$script_file" .sh)
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

# fail TEXT...: prints an error and exits with code 1.
fail() {
  printf '%s: %s\n' "$script" "$*" >&2
  exit 1
}

# usage_error TEXT...: prints an error about the arguments and exits with code 2.
usage_error() {
  printf '%s: %s (see --help)\n' "$script" "$*" >&2
  exit 2
}

# Prints the comment at the head of the script.
print_help() { awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$script_file"; }

# help_if_asked "$@": prints the help and exits if -h or --help is among the arguments.
help_if_asked() {
  local argument
  for argument in "$@"; do
    case "$argument" in -h | --help)
      print_help
      exit 0
      ;;
    esac
  done
}

# step TEXT...: prints a heading.
step() { printf '\n== %s\n' "$*"; }

# Builds the program and sets `backpack` to its path.
build_backpack() {
  scripts/setup.sh || exit 1
  cargo build --release --locked || exit 1
  backpack=${CARGO_TARGET_DIR:-target}/release/backpack
}

# Uses the program that BACKPACK_BINARY names, or builds it if that is unset. Exports
# BACKPACK_BINARY as an absolute path.
use_backpack_binary() {
  if [ -z "${BACKPACK_BINARY:-}" ]; then
    build_backpack
    BACKPACK_BINARY=$backpack
  fi
  BACKPACK_BINARY=$(realpath "$BACKPACK_BINARY")
  [ -x "$BACKPACK_BINARY" ] || fail "BACKPACK_BINARY is $BACKPACK_BINARY, which is not an executable file."
  export BACKPACK_BINARY
}

# Creates a temporary folder, sets `work` to its path, and deletes it at exit.
make_work_folder() {
  work=$(mktemp -d -t "backpack-$script.XXXXXX")
  trap 'rm -rf "$work"' EXIT
}

# make_python_environment NAME REQUIREMENTS [PIP OPTION...]: sets `environment` to a Python
# environment in the cache, and creates it if it is missing, incomplete or outdated.
make_python_environment() {
  environment=${XDG_CACHE_HOME:-$HOME/.cache}/backpack/$1
  mkdir -p "$environment"
  exec 9>"$environment.lock"
  flock 9 # another process may be creating it
  if ! cmp -s "$2" "$environment/MADE"; then
    python3 -m venv --clear "$environment"
    "$environment/bin/pip" install --quiet --disable-pip-version-check "${@:3}" -r "$2"
    # Copied last: an environment without this file is incomplete.
    cp "$2" "$environment/MADE"
  fi
  exec 9>&-
}
