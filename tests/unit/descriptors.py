# SPDX-License-Identifier: Apache-2.0
"""A test asks which files of its own this process has open.

All others come and go with the threads of other tests.
"""

import contextlib
import os
import resource
from collections.abc import Iterator

import pytest


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


@contextlib.contextmanager
def many() -> Iterator[None]:
    """Have so many open that the next has a number above 1023."""
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < 2048:
        pytest.skip('this process may not have so many open')
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before, 2048), most))
    opened = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)]
    try:
        while opened[-1] < 1024:
            opened.append(os.dup(opened[0]))
        yield
    finally:
        for file in opened:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))
