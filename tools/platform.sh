#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
#   tools/platform.sh [--fresh] NAME [COMMAND...]       as root
#
# What holds on another release of Debian or Ubuntu ("trixie", "sid"), in a
# root of its own: by default the demonstration and the tests. See --help.

set -eu
cd "$(dirname "$0")/.."
PYTHONDONTWRITEBYTECODE=1 exec python3 -m tools.setup.root "$@"
