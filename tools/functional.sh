#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
#   tools/functional.sh [ARGUMENT of pytest...]     as root; PYTHON names it
#
# With COVERAGE set what is run is measured.
#
# Each file in namespaces and a process of its own: what nova's fixtures and
# a host's namespaces leave in a process is in the way of other tests.

set -u
cd "$(dirname "$0")/.."

python=${PYTHON:-python}
failed=0
for file in tests/functional/test_*.py; do
    "$python" -m tests.lab.namespace \
        "$python" ${COVERAGE:+-m coverage run} -m pytest --verbose \
        -p no:cacheprovider --disable-warnings --show-capture=no \
        "$@" "$file"
    status=$?
    # 5: none of its tests was asked for.
    [ $status = 0 ] || [ $status = 5 ] || failed=1
done
exit $failed
