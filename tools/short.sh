#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# What tells of a platform in a quarter of an hour: the demonstration, the unit
# tests, the package, and the functional tests of reading, guests, nova, live
# migration, health and re-attach. Installs what is missing first; goes on
# after a failure.

set -eu
cd "$(dirname "$0")/.."
. tools/setup/report.sh

tools/setup/bindep.sh
tools/setup/venv.sh
python=$PWD/.venv/bin/python
summary="
set-up: $(($(date +%s) - begun)) s"
steps=4

run demonstration tools/demo.sh
run unit "$python" -m pytest --quiet --disable-warnings tests/unit
run install "$python" -m pytest --quiet --disable-warnings tests/install
files=$(printf 'tests/functional/test_%s.py\n' live_migration console_log \
    guest nova virtlogd_health virtlogd_reattach)
# shellcheck disable=SC2086  # empty, or words
run functional $as_root env PYTHON="$python" FILES="$files" JOBS=2 \
    tools/functional.sh -m 'not long'
finish
