# SPDX-License-Identifier: Apache-2.0
"""This driver supports these releases of nova: said here, and nowhere else.

``python virtlogd_driver/node/release.py`` prints them, for tools/matrix.sh; it
needs nothing but the standard library.
"""

import re
from enum import Enum

#: 2025.1 "Epoxy".
OLDEST = 31
#: The newest that was tried.
NEWEST = 34


class Support(Enum):
    """Support is how well a release of nova is known."""

    TOO_OLD = 'too old'
    #: Everything was tried on it (tools/matrix.sh).
    SUPPORTED = 'supported'
    #: Than every release that was tried: compute/seams.py looks at it.
    NEWER = 'newer'


def support(version: str) -> Support:
    """Tell how well a nova is known.

    :param version: as nova.version.version_string() gives it, "34.0.0"; what
        is no version is too old
    """
    number = re.match(r'\d+', version)
    if number is None or int(number[0]) < OLDEST:
        return Support.TOO_OLD
    return Support.NEWER if int(number[0]) > NEWEST else Support.SUPPORTED


def supported() -> str:
    """Give the releases in words, "31 to 34"."""
    return f'{OLDEST} to {NEWEST}'


def main() -> None:
    print(*range(OLDEST, NEWEST + 1))


if __name__ == '__main__':
    main()
