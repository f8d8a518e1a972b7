# SPDX-License-Identifier: Apache-2.0
"""Carry what a guest wrote to where it goes on.

A guest that moves starts a new generation (generation.py), and everything
older is carried there as one file per port. Nobody writes the old files any
more by then. They are staged in a directory of their own, each under a name
that says how long it is; that directory is copied to the other host at one go
(or made in place), and the receiving side takes out of it what is whole. So a
history is never seen half, and nothing has to be renamed from afar.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable

from virtlogd_driver import exception
from virtlogd_driver.console_log import generation

#: The staging directory; it is copied as a whole, under the same name.
STAGING = 'console.moving'

_STAGED = re.compile(r'(?P<name>.+)\.(?P<size>[0-9]+)')

#: Path of a log here, and of the log there that goes on from it.
Move = tuple[str, str]

#: Gives the newest bytes of the log with a path, at most so many.
Read = Callable[[str, int], bytes]


def moves(here: str, there: str) -> list[Move]:
    """What of one directory is to be carried to another, port by port.

    :param here: path of the instance directory; nobody writes logs there now
    :param there: path of the instance directory that the guest goes on in
    """
    names = _names(here)
    found = []
    for port in sorted({file.port for file in map(generation.parse, names)
                        if file is not None}):
        live = generation.newest(names, port) or 0
        found.append((
            os.path.join(here, generation.live_name(port, live)),
            os.path.join(there, generation.live_name(port, live + 1))))
    return found


class Departure:
    """A guest on its way to another host: where each of its logs goes on."""

    def __init__(self, host: str, directory: str, shared: bool) -> None:
        """
        :param host: the destination
        :param directory: path of the instance directory, on both hosts
        :param shared: it is one directory, on storage that both share
        """
        self.host = host
        self.shared = shared
        self._directory = directory
        self._moves: dict[int, Move] = {}

    def next_log(self, port: int, here: str | None) -> str:
        """Path of a port's log on the destination.

        A directory that is new there starts with generation 1: the
        destination prepares the file and cannot know of another. In a shared
        one it has just begun the next.

        :param here: path of its log here, if it has one
        """
        if here is None:
            here = os.path.join(self._directory, generation.live_name(
                port, generation.newest(_names(self._directory), port) or 0))
        directory, name = os.path.split(here)
        following = 1
        if self.shared:
            file = generation.parse(name)
            following = max(
                generation.newest(_names(directory), port) or 0,
                1 + (file.generation if file is not None else 0))
        there = os.path.join(directory,
                             generation.live_name(port, following))
        self._moves[port] = here, there
        return there

    def moves(self) -> list[Move]:
        """What is to be carried once the guest has left."""
        return [self._moves[port] for port in sorted(self._moves)]


def next_generation(directory: str, port: int) -> int:
    """The generation that a guest which comes to a directory begins."""
    return (generation.newest(_names(directory), port) or 0) + 1


def stage(moves: Iterable[Move], directory: str, limit: int,
          read: Read) -> list[exception.LogError]:
    """Fill a staging directory with the histories of logs.

    :param directory: path of the directory that it is made in, anew
    :param limit: the most bytes to carry of one port, the newest
    :returns: why ports are left out
    :raises OSError: nothing can be written
    """
    staging = os.path.join(directory, STAGING)
    shutil.rmtree(staging, ignore_errors=True)
    os.mkdir(staging, mode=0o700)
    failed = []
    for here, there in moves:
        file = generation.parse(os.path.basename(there))
        assert file is not None, there
        try:
            data = read(here, limit)
        except exception.LogNotFound:
            continue
        except exception.LogError as e:
            failed.append(e)
            continue
        name = generation.history_name(file.port, file.generation)
        with open(os.path.join(staging, f'{name}.{len(data)}'), 'xb') as out:
            out.write(data)
    return failed


def receive(staged_in: str, directory: str) -> list[str]:
    """Put what was staged in place.

    :param staged_in: path of the directory that it was staged in; the
        instance directory itself, or one beside it, which is removed
    :param directory: path of the instance directory

    What is not whole is removed; there is nothing to resume it from.

    :returns: the names of histories that had not come whole
    """
    staging = os.path.join(staged_in, STAGING)
    broken = []
    for staged in _names(staging):
        path = os.path.join(staging, staged)
        match = _STAGED.fullmatch(staged)
        if match is not None and os.lstat(path).st_size == int(match['size']):
            os.rename(path, os.path.join(directory, match['name']))
        else:
            broken.append(staged)
    shutil.rmtree(staging if staged_in == directory else staged_in,
                  ignore_errors=True)
    _prune(directory)
    return broken


def _prune(directory: str) -> None:
    """Remove what a history that is in place has made superfluous."""
    names = _names(directory)
    for name in names:
        file = generation.parse(name)
        if file is None:
            continue
        newest = generation.newest(names, file.port) or 0
        if (file.generation < newest and generation.history_name(
                file.port, newest) in names):
            os.unlink(os.path.join(directory, name))


def remove_empty(directory: str, live: str) -> None:
    """Remove the empty logs that a refused migration left behind.

    :param live: name of the log that the guest still writes
    """
    kept = generation.parse(live)
    for name in _names(directory):
        file = generation.parse(name)
        if (kept is not None and file is not None
                and file.generation > kept.generation):
            path = os.path.join(directory, name)
            if os.lstat(path).st_size == 0:
                os.unlink(path)


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []
