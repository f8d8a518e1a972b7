#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# All tests but the longest, after installing what is missing. Goes on after a
# failure; ends with a summary, and with status 1 if anything failed.
#
# As root a part of them runs on another platform, too (tools/short.sh):
# PLATFORM names it, or is empty.

set -eu
cd "$(dirname "$0")/.."
. tools/setup/report.sh

tools/setup/bindep.sh
tools/setup/venv.sh
python=$PWD/.venv/bin/python
summary="
set-up: $(($(date +%s) - begun)) s"
steps=6
platform=
if [ "$(id -u)" = 0 ] && [ -n "${PLATFORM-trixie}" ]; then
    platform=${PLATFORM-trixie}
    steps=7
fi

# nova's unit tests compute, and the functional tests mostly wait: beside each
# other, and the latter first in whatever there is of a processor. Not nicer
# than that: niced work of others would leave the former none.
said=$(mktemp -d)
groups=
trap 'for group in $groups; do kill -- "-$group" 2>/dev/null || true; done
    rm -rf "$said"' EXIT
trap 'exit 130' INT TERM
beside "$said/older" env PYTHON="$python" nice -n 10 tools/matrix.sh --short
older=$!
groups=$older
if [ -n "$platform" ]; then
    beside "$said/platform" nice -n 10 \
        tools/platform.sh "$platform" tools/short.sh
    elsewhere=$!
    groups="$older $elsewhere"
fi

run unit "$python" -m pytest --quiet --disable-warnings tests/unit
run install "$python" -m pytest --quiet --disable-warnings tests/install
# "tox -e functional" runs the long ones, too.
# shellcheck disable=SC2086  # empty, or words
run functional $as_root env PYTHON="$python" JOBS=2 \
    tools/functional.sh -m 'not long'
run "nova's own tests on older releases" wait_for "$older" "$said/older"
[ -z "$platform" ] ||
    run "a part on $platform" wait_for "$elsewhere" "$said/platform"
# nova's functional tests wait by the clock: they have the machine to
# themselves.
for suite in unit functional; do
    run "nova's own $suite tests" \
        "$python" tools/peers/nova_tests.py --ours-only --suite $suite
done
finish
