#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# A real nova boots a real Linux guest with both consoles, step by step, in
# namespaces of its own. Installs what is missing first.

set -eu
cd "$(dirname "$0")/.."

tools/setup/bindep.sh
tools/setup/venv.sh
image=$(.venv/bin/python -m tests.lab.linux_guest build)

as_root=
# Root leaves no compiled files in the tree of somebody else.
[ "$(id -u)" = 0 ] || as_root="sudo env PYTHONDONTWRITEBYTECODE=1"
# shellcheck disable=SC2086  # empty, or words
exec $as_root .venv/bin/python -m tests.lab.namespace \
    "$PWD/.venv/bin/python" -m tools.demo "$image"
