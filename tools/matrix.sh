#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# What has to hold on every supported release of nova, each in an environment
# of its own with that release's libraries (tools/constraints).
#
#   tools/matrix.sh [--short] [RELEASE...]      as root, for the private daemons
#
# In full: unit tests, nova's own tests beside nova's own driver, the load
# test, and a whole nova in one process on a real libvirtd; on eventlet up to
# release 33 and on native threads from 34, as nova-compute runs by default.
# --short leaves it at nova's own tests, with this driver only: all of them on
# the newest release, those of consoles on the others.
# SECONDS_OF_LOAD=N is for each driver, 60 otherwise.

set -eu
cd "$(dirname "$0")/.."

short=
if [ "${1-}" = --short ]; then
    short=yes
    shift
fi
begin=$(date +%s)
[ -n "$short" ] || tools/setup/bindep.sh
summary=
failed=0

# make RELEASE: .venv-nova<RELEASE>, quick when it is up to date
make() {
    environment=.venv-nova$1
    constraints=tools/constraints/nova$1.txt
    python=$PWD/$environment/bin/python
    now=$({ pwd; cat "$constraints" pyproject.toml test-requirements.txt
          cat virtlogd_driver_nova.pth; } | sha256sum)
    [ "$now" != "$(cat "$environment/made-from" 2>/dev/null)" ] || return 0
    echo "Making $environment"
    "${PYTHON:-python3}" -m venv --clear "$environment"
    "$python" -m pip install --quiet --disable-pip-version-check \
        --constraint "$constraints" "nova==$1.*" --editable . \
        --requirement test-requirements.txt
    echo "$now" > "$environment/made-from"
}

# run NAME COMMAND...
run() {
    name=$1
    shift
    printf '\n== nova %s: %s ==\n' "$release" "$name"
    start=$(date +%s)
    # What hangs shows where: a Python process its stacks, when it is aborted.
    if PYTHONFAULTHANDLER=1 timeout --signal=ABRT --kill-after=30 2400 "$@"
    then
        result=passed
    else
        result=FAILED
        failed=1
    fi
    summary="$summary
nova $release: $name: $result, $(($(date +%s) - start)) s"
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
    run "one process, $1" env OS_NOVA_DISABLE_EVENTLET_PATCHING=$native \
        "$python" -m tests.lab.namespace "$python" -m pytest --quiet \
        --disable-warnings -p no:cacheprovider -k "$tests" \
        tests/functional/test_nova.py tests/functional/test_life_cycle.py \
        tests/functional/test_nova_virtlogd.py
}

for release in ${*:-31 32 33 34}; do
    make "$release"
    suite=consoles
    [ "$release" != 34 ] || suite=all
    if [ -n "$short" ]; then
        run "its own tests ($suite)" \
            "$python" tools/peers/nova_tests.py --ours-only --suite $suite
        continue
    fi
    run unit "$python" -m pytest --quiet --disable-warnings tests/unit
    run "its own tests ($suite)" "$python" tools/peers/nova_tests.py --suite $suite
    run load "$python" tools/bench/load.py --seconds "${SECONDS_OF_LOAD:-60}"
    # As nova-compute runs by default.
    if [ "$release" -lt 34 ]; then
        one_process eventlet
    else
        one_process threading
    fi
done

printf '\n== Summary ==%s\nall: %s s\n' \
    "$summary" "$(($(date +%s) - begin))"
exit $failed
