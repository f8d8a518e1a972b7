#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
#   tools/functional.sh [ARGUMENT of pytest...]     as root; PYTHON names it
#
# With COVERAGE set what is run is measured; with FILES, it is these. JOBS=2
# runs two files at a time, and shows each when it has ended.
#
# Each file in namespaces and a process of its own: what nova's fixtures and
# a host's namespaces leave in a process is in the way of other tests.

set -u
cd "$(dirname "$0")/.."

python=${PYTHON:-python}

# one FILE ARGUMENT...
one() {
    file=$1
    shift
    "$python" -m tests.lab.namespace \
        "$python" ${COVERAGE:+-m coverage run} -m pytest --verbose \
        -p no:cacheprovider --disable-warnings --show-capture=no \
        "$@" "$file"
    status=$?
    # 5: none of its tests was asked for.
    [ $status = 0 ] || [ $status = 5 ]
}

if [ "${1-}" = --one ]; then
    shift
    one "$@"
    exit
fi

. tools/setup/report.sh

# Those that move guests take longest: they begin first.
moves='test_\(.*migration.*\|history_copy\)\.py'
files=${FILES-$(ls tests/functional/test_*.py | grep "$moves"
                ls tests/functional/test_*.py | grep -v "$moves")}
# shellcheck disable=SC2086  # words
steps=$(echo $files | wc -w)

# side_by_side ARGUMENT...: as many files at a time as JOBS says
side_by_side() {
    # shellcheck disable=SC2016  # for the shell of each job
    printf '%s\n' $files | setsid xargs --max-procs="$JOBS" -I '{}' sh -c '
        file=$1 lock=$2
        shift 2
        said=$(mktemp)
        trap "rm -f \"$said\"" EXIT
        echo "begun: $file"
        if tools/functional.sh --one "$file" "$@" >"$said" 2>&1; then
            result=passed
        else
            result=FAILED
        fi
        flock "$lock" cat "$said"
        echo "ended: $file: $result"
        [ $result = passed ]' job '{}' "$lock" "$@" &
    jobs=$!
    status=0
    wait "$jobs" || status=1
    jobs=
    return $status
}

if [ "${JOBS:-1}" = 1 ]; then
    for file in $files; do
        run "$file" one "$file" "$@"
    done
else
    lock=$(mktemp)
    jobs=
    trap '[ -z "$jobs" ] || kill -- "-$jobs" 2>/dev/null; rm -f "$lock"' EXIT
    trap 'exit 130' INT TERM
    steps=
    run "$(echo $files | wc -w) files, $JOBS at a time" side_by_side "$@"
fi
finish
