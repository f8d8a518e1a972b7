# SPDX-License-Identifier: Apache-2.0
"""The releases of nova that this driver works with."""

import re
from importlib import metadata

from oslo_log import log as logging

from virtlogd_driver import exception

LOG = logging.getLogger(__name__)

#: The oldest, 2025.1 "Epoxy". Each one from it is tested (tools/matrix.sh).
OLDEST = 31


def announce(version: str) -> None:
    """Log which driver runs on which nova, and refuse one that is too old.

    :param version: as nova.version.version_string() gives it, "34.0.0"
    :raises UnsupportedNova: it is older than OLDEST, or is no version
    """
    LOG.info('Compute driver virtlogd_driver %s on nova %s',
             metadata.version('virtlogd-driver'), version)
    check(version)


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
