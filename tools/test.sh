#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# All tests but the longest, after installing what is missing. Goes on after a
# failure; ends with a summary, and with status 1 if anything failed.

set -eu
cd "$(dirname "$0")/.."
. tools/setup/report.sh

tools/setup/bindep.sh
tools/setup/venv.sh
python=$PWD/.venv/bin/python
summary="
set-up: $(($(date +%s) - begun)) s"
steps=6

# nova's unit tests compute, and the functional tests mostly wait: beside each
# other, and the latter first in whatever there is of a processor. Not nicer
# than that: niced work of others would leave the former none.
said=$(mktemp)
beside "$said" env PYTHON="$python" nice -n 10 tools/matrix.sh --short
older=$!
trap 'kill -- "-$older" 2>/dev/null || true; rm -f "$said"' EXIT
trap 'exit 130' INT TERM

run unit "$python" -m pytest --quiet --disable-warnings tests/unit
run install "$python" -m pytest --quiet --disable-warnings tests/install
# "tox -e functional" runs the long ones, too.
# shellcheck disable=SC2086  # empty, or words
run functional $as_root env PYTHON="$python" JOBS=2 \
    tools/functional.sh -m 'not long'
run "nova's own tests on older releases" wait_for "$older" "$said"
# nova's functional tests wait by the clock: they have the machine to
# themselves.
for suite in unit functional; do
    run "nova's own $suite tests" \
        "$python" tools/peers/nova_tests.py --ours-only --suite $suite
done
finish
