#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
#   tools/functional.sh [ARGUMENT of pytest...]     as root; PYTHON names it
#
# With COVERAGE set what is run is measured; with FILES, it is these. With
# BESIDE set the files that move guests between hosts run beside the others,
# which takes both about as long, and are shown after them.
#
# Each file in namespaces and a process of its own: what nova's fixtures and
# a host's namespaces leave in a process is in the way of other tests.

set -u
cd "$(dirname "$0")/.."

python=${PYTHON:-python}
moves='/test_\(live_migration.*\|cold_migration\|history_copy\)\.py$'

# run FILE ARGUMENT...
run() {
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

files=${FILES-$(ls tests/functional/test_*.py)}
beside=
if [ -n "${BESIDE-}" ]; then
    moving=$(echo "$files" | grep "$moves")
    files=$(echo "$files" | grep -v "$moves")
    shown=$(mktemp)
    BESIDE='' FILES=$moving setsid tools/functional.sh "$@" \
        >"$shown" 2>&1 &
    beside=$!
    trap 'kill -- "-$beside" 2>/dev/null; rm -f "$shown"' EXIT
    trap 'exit 130' INT TERM
fi
failed=0
for file in $files; do
    run "$file" "$@" || failed=1
done
if [ -n "$beside" ]; then
    wait "$beside" || failed=1
    cat "$shown"
fi
exit $failed
