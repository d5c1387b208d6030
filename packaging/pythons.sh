#!/bin/sh
# Print the Pythons on this machine that storaged can be developed with: version and path, one for
# each minor version.
#
# The machine's own python3 comes first, then the others, newest first. $PYTHON names one to use
# before all others. A Python without ensurepip (Debian without python3-venv) is left out.
set -u

probe='
import sys
if sys.version_info < (3, 11):
    raise SystemExit(1)
import ctypes, ensurepip, ssl, venv
print("%d.%d %s" % (*sys.version_info[:2], sys.executable))
'

candidates() {
    printf '%s\n' "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11
    find "${PYENV_ROOT:-$HOME/.pyenv}/versions" -maxdepth 3 -path '*/bin/python3' 2>/dev/null |
        sort -rV
}

seen=' '
for candidate in $(candidates); do
    answer=$("$candidate" -c "$probe" 2>/dev/null) || continue
    version=${answer%% *}
    case $seen in *" $version "*) continue ;; esac
    seen="$seen$version "
    echo "$answer"
done
