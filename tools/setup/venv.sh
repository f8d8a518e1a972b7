#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Make .venv, with this package, nova and what the tests need; quick when it
# is up to date. PYTHON names the interpreter, 3.11 or newer.

set -eu
cd "$(dirname "$0")/../.."

python=
for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
            2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo 'venv.sh: Python 3.11 or newer is needed; PYTHON=... names one' >&2
    exit 1
fi

# What the environment was made from.
now=$({ pwd; "$python" -VV; cat pyproject.toml test-requirements.txt
      cat virtlogd_driver_nova.pth; } | sha256sum)
[ "$now" != "$(cat .venv/made-from 2>/dev/null)" ] || exit 0

echo 'Making .venv: nova and its libraries take a few minutes'
"$python" -m venv --clear .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check \
    --editable '.[nova]' --requirement test-requirements.txt
echo "$now" > .venv/made-from
