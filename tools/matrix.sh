#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# What has to hold on every supported release of nova, each in an environment
# of its own with that release's libraries (tools/constraints).
#
#   tools/matrix.sh [--short] [RELEASE|PATH...]  as root, for the private daemons
#
# A PATH is a nova that is not released, or not yet supported: a source tree, an
# sdist or a wheel; it gets the newest libraries that it allows.
#
# In full: unit tests, nova's own tests beside nova's own driver, the load
# test, and a whole nova in one process on a real libvirtd; on eventlet up to
# release 33 and on native threads from 34, as nova-compute runs by default.
# --short leaves it at nova's own tests of consoles, with this driver only, on
# all releases but the newest, which .venv has.
# SECONDS_OF_LOAD=N is for each driver, 60 otherwise.

set -eu
cd "$(dirname "$0")/.."
. tools/setup/report.sh

releases=$(python3 virtlogd_driver/node/release.py)
newest=${releases##* }
short=
if [ "${1-}" = --short ]; then
    short=yes
    shift
    releases=${releases% *}
fi
[ -n "$short" ] || tools/setup/bindep.sh

# make NAME NOVA [CONSTRAINTS]: .venv-nova<NAME>, quick when it is up to date
make() {
    environment=.venv-nova$1
    python=$PWD/$environment/bin/python
    now=$({ pwd; echo "$2"; cat ${3:+"$3"} pyproject.toml \
          test-requirements.txt virtlogd_driver_nova.pth; } | sha256sum)
    # A source tree is not the same the next time.
    if [ ! -d "$2" ] &&
            [ "$now" = "$(cat "$environment/made-from" 2>/dev/null)" ]; then
        return 0
    fi
    echo "Making $environment"
    "${PYTHON:-python3}" -m venv --clear "$environment"
    "$python" -m pip install --quiet --disable-pip-version-check \
        ${3:+--constraint "$3"} "$2" --editable . \
        --requirement test-requirements.txt
    echo "$now" > "$environment/made-from"
}

# guarded COMMAND...: what hangs shows where, and is ended
guarded() {
    # A Python process shows its stacks, when it is aborted.
    PYTHONFAULTHANDLER=1 timeout --signal=ABRT --kill-after=30 2400 "$@"
}

# one_process BACKEND: a whole nova on a real libvirtd
one_process() {
    native=1
    tests=
    if [ "$1" = eventlet ]; then
        native=0
        # The hosts of tests.lab.two_hosts are told apart by native threads.
        tests='not evacuate'
    fi
    run "nova $release: one process, $1" guarded \
        env OS_NOVA_DISABLE_EVENTLET_PATCHING=$native \
        "$python" -m tests.lab.namespace "$python" -m pytest --quiet \
        --disable-warnings -p no:cacheprovider -k "$tests" \
        tests/functional/test_nova.py tests/functional/test_life_cycle.py \
        tests/functional/test_nova_virtlogd.py
}

# older_than_python RELEASE: its libraries are not there for this Python
older_than_python() {
    # lxml 5.4
    [ "$1" = 31 ] && "${PYTHON:-python3}" -c \
        'import sys; sys.exit(sys.version_info < (3, 14))'
}

# shellcheck disable=SC2048  # words
for asked in ${*:-$releases}; do
    if older_than_python "$asked"; then
        echo "nova $asked: not run, as the libraries of its time are not" \
            'there for this Python'
        continue
    fi
    if [ -e "$asked" ]; then
        make -path "$(realpath "$asked")"
    elif [ ! -e "tools/constraints/nova$asked.txt" ]; then
        echo "matrix.sh: $asked is none of the releases $releases," \
            'and no path' >&2
        exit 2
    else
        make "$asked" "nova==$asked.*" "tools/constraints/nova$asked.txt"
    fi
    release=$("$python" -c \
        'from importlib import metadata; print(metadata.version("nova"))')
    major=${release%%.*}
    suite=consoles
    [ "$major" -lt "$newest" ] || suite=all
    if [ -n "$short" ]; then
        run "nova $release: its own tests ($suite)" guarded \
            "$python" tools/peers/nova_tests.py --ours-only --suite $suite
        continue
    fi
    run "nova $release: unit" guarded \
        "$python" -m pytest --quiet --disable-warnings tests/unit
    run "nova $release: its own tests ($suite)" guarded \
        "$python" tools/peers/nova_tests.py --suite $suite
    run "nova $release: load" guarded \
        "$python" tools/bench/load.py --seconds "${SECONDS_OF_LOAD:-60}"
    # As nova-compute runs by default.
    if [ "$major" -lt 34 ]; then
        one_process eventlet
    else
        one_process threading
    fi
done
finish
