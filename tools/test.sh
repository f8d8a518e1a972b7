#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# All tests, after installing what is missing. Goes on after a failure; ends
# with a summary, and with status 1 if anything failed.

set -eu
cd "$(dirname "$0")/.."

begin=$(date +%s)
tools/bindep.sh
tools/venv.sh
python=$PWD/.venv/bin/python

as_root=
# Root leaves no compiled files in the tree of somebody else.
[ "$(id -u)" = 0 ] || as_root="sudo env PYTHONDONTWRITEBYTECODE=1"
summary="set-up: $(($(date +%s) - begin)) s"
failed=0

# ended NAME START STATUS
ended() {
    result=passed
    if [ "$3" != 0 ]; then
        result=FAILED
        failed=1
    fi
    summary="$summary
$1: $result, $(($(date +%s) - $2)) s"
}

# run NAME COMMAND...
run() {
    name=$1
    shift
    printf '\n== %s ==\n' "$name"
    start=$(date +%s)
    status=0
    "$@" || status=$?
    ended "$name" "$start" "$status"
}

# functional ARGUMENT...: in namespaces of their own, one line a test
functional() {
    # shellcheck disable=SC2086  # empty, or words
    $as_root "$python" -m tests.lab.namespace "$python" -m pytest \
        --verbose -p no:cacheprovider --disable-warnings \
        --show-capture=no "$@"
}

run unit "$python" -m pytest --quiet --disable-warnings tests/unit
run install "$python" -m pytest --quiet --disable-warnings tests/install

# Two at a time: they wait more than they compute, and share nothing.
printf '\n== functional ==\n'
start=$(date +%s)
functional tests/functional/test_migration.py &
status=0
functional tests/functional \
    --ignore tests/functional/test_migration.py || status=$?
ended functional "$start" "$status"
status=0
wait $! || status=$?
ended 'functional, migration' "$start" "$status"

printf '\n== Summary ==\n%s\nall: %s s\n' \
    "$summary" "$(($(date +%s) - begin))"
exit $failed
