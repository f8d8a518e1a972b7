#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Install the Debian or Ubuntu packages of bindep.txt that are missing.
# Needs root or sudo only if there are any.

set -eu
cd "$(dirname "$0")/../.."

if ! command -v dpkg-query >/dev/null; then
    echo 'bindep.sh: this is not Debian or Ubuntu: install what' \
         'bindep.txt names by hand' >&2
    exit 1
fi

missing=
for package in $(sed -n 's/^\([a-z0-9][a-z0-9.+-]*\).*/\1/p' bindep.txt); do
    status=$(dpkg-query --show --showformat '${db:Status-Status}' \
        "$package" 2>/dev/null) || status=
    [ "$status" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

as_root=
if [ "$(id -u)" != 0 ]; then
    as_root=sudo
    command -v sudo >/dev/null || {
        echo "bindep.sh: to be installed, by root:$missing" >&2
        exit 1
    }
fi
echo "Installing:$missing"
$as_root apt-get update --quiet --quiet ||
    echo 'bindep.sh: going on with the package lists that are here' >&2
# shellcheck disable=SC2086  # a list
exec $as_root env DEBIAN_FRONTEND=noninteractive apt-get install \
    --yes --quiet --quiet --no-install-recommends $missing </dev/null
