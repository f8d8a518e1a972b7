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
. tools/setup/report.sh

python=${PYTHON:-python}
moves='/test_\(live_migration.*\|cold_migration\|history_copy\)\.py$'

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

files=${FILES-$(ls tests/functional/test_*.py)}
aside=
if [ -n "${BESIDE-}" ]; then
    moving=$(echo "$files" | grep "$moves")
    files=$(echo "$files" | grep -v "$moves")
    said=$(mktemp)
    beside "$said" env BESIDE='' FILES="$moving" tools/functional.sh "$@"
    aside=$!
    trap 'kill -- "-$aside" 2>/dev/null; rm -f "$said"' EXIT
    trap 'exit 130' INT TERM
fi
# shellcheck disable=SC2086  # words
steps=$(echo $files ${aside:+moves} | wc -w)
for file in $files; do
    run "$file" one "$file" "$@"
done
[ -z "$aside" ] || run moves wait_for "$aside" "$said"
finish
