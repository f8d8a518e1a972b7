#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# All tests but the longest, after installing what is missing. Goes on after a
# failure; ends with a summary, and with status 1 if anything failed.

set -eu
cd "$(dirname "$0")/.."

begin=$(date +%s)
tools/setup/bindep.sh
tools/setup/venv.sh
python=$PWD/.venv/bin/python

as_root=
# Root leaves no compiled files in the tree of somebody else.
[ "$(id -u)" = 0 ] || as_root="sudo env PYTHONDONTWRITEBYTECODE=1"
summary="set-up: $(($(date +%s) - begin)) s"
failed=0

# run NAME COMMAND...
run() {
    name=$1
    shift
    printf '\n== %s ==\n' "$name"
    start=$(date +%s)
    if "$@"; then
        result=passed
    else
        result=FAILED
        failed=1
    fi
    summary="$summary
$name: $result, $(($(date +%s) - start)) s"
}

# nova's own unit tests compute, the functional tests mostly wait: beside each
# other, and the latter first in whatever there is of a processor.
beside=$(mktemp)
PYTHON=$python setsid nice -n 19 tools/matrix.sh --short >"$beside" 2>&1 &
peers=$!
trap 'kill -- "-$peers" 2>/dev/null || true; rm -f "$beside"' EXIT
trap 'exit 130' INT TERM

show_peers() {
    status=0
    wait "$peers" || status=$?
    cat "$beside"
    return $status
}

run unit "$python" -m pytest --quiet --disable-warnings tests/unit
run install "$python" -m pytest --quiet --disable-warnings tests/install
# "tox -e functional" runs the long ones, too. Real daemons on a machine that is
# busy may need more time than a test gives them: once again, then, and said.
# shellcheck disable=SC2086  # empty, or words
run functional $as_root env PYTHON="$python" BESIDE=yes \
    tools/functional.sh --reruns 1 -rR -m 'not long'
run "nova's own tests" show_peers

printf '\n== Summary ==\n%s\nall: %s s\n' \
    "$summary" "$(($(date +%s) - begin))"
exit $failed
