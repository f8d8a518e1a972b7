# SPDX-License-Identifier: Apache-2.0
"""The releases of nova that this driver works with."""

import re

from virtlogd_driver import exception

#: The oldest, 2025.1 "Epoxy". Each one from it is tested (tools/matrix.sh).
OLDEST = 31


def check(version: str) -> None:
    """Refuse a nova that is too old.

    A newer one than is tested is let through:
    tests/unit/compute/test_seams.py tells what changed in it.

    :param version: as nova.version.version_string() gives it, "34.0.0"
    :raises UnsupportedNova: it is older than OLDEST, or is no version
    """
    number = re.match(r'\d+', version)
    if number is None or int(number[0]) < OLDEST:
        raise exception.UnsupportedNova(version, OLDEST)
