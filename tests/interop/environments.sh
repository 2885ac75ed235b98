#!/usr/bin/env bash
# Creates the Python environments of tests/interop, if they are missing or incomplete, and prints
# the directory that holds them.
#
#   tests/interop/environments.sh NAME...     the version of transformers: 4.46 or newest
#
# They are created once (0.9 GB to download, 2.7 GB on disk for both), in
# ${XDG_CACHE_HOME:-~/.cache}/backpack/interop. The script can be killed and run again at any time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
log() { printf 'interop: %s\n' "$*" >&2; }

cache=${XDG_CACHE_HOME:-$HOME/.cache}/backpack/interop
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9 # another process may be creating them

python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { log "Python 3.11 or newer is needed."; exit 1; }
# MADE, a copy of the requirements, is written last: an environment without it is incomplete.
is_made() { [ -f "$1/MADE" ] && cat "${@:2}" | cmp -s - "$1/MADE"; }
install() { "$1/bin/pip" install --quiet --disable-pip-version-check --no-deps "${@:2}" >&2; }

torch=$cache/torch
if ! is_made "$torch" requirements-torch.txt without_cuda.py; then
  log "downloading torch into $torch"
  rm -rf "$torch"
  python3 -m pip install --quiet --disable-pip-version-check --no-deps --root-user-action=ignore --target "$torch" -r requirements-torch.txt >&2
  python3 without_cuda.py "$torch" >&2
  cat requirements-torch.txt without_cuda.py >"$torch/MADE"
fi
for name in "$@"; do
  list=requirements.txt
  [ "$name" = 4.46 ] || list=requirements-$name.txt
  if ! is_made "$cache/$name" "$list"; then
    log "creating $cache/$name"
    python3 -m venv --clear "$cache/$name"
    install "$cache/$name" -r "$list"
    echo "$torch" >"$("$cache/$name/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch.pth"
    cp "$list" "$cache/$name/MADE"
  fi
done
printf '%s\n' "$cache"
