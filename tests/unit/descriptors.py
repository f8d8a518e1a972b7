# SPDX-License-Identifier: Apache-2.0
"""A test asks which files of its own this process has open.

All others come and go with the threads of other tests.
"""

import contextlib
import os


def below(directory: str | os.PathLike[str]) -> list[str]:
    """Paths of open files in a directory, and of it; each as often as it is
    open."""
    top = os.fspath(directory)
    found = []
    for name in os.listdir('/proc/self/fd'):
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(f'/proc/self/fd/{name}')
            if target == top or target.startswith(f'{top}/'):
                found.append(target)
    return sorted(found)


def of(file: int) -> int:
    """How often the file of a descriptor is open, which no other test has."""
    count = 0
    for name in os.listdir('/proc/self/fd'):
        with contextlib.suppress(OSError):
            count += os.path.samestat(os.fstat(int(name)), os.fstat(file))
    return count
