# SPDX-License-Identifier: Apache-2.0
"""Carry what a guest wrote to where it goes on.

A guest that moves starts a new generation (generation.py), and everything
older is carried there as one file per port. Nobody writes the old files any
more by then, and the carried file is never seen half:

* on this host it is written under another name and renamed;
* another host gets it under a name that says how long it is to be
  (``console.g1.history.arriving-<bytes>``), and renames it itself once it is
  that long. Neither ssh nor rsync needs to rename anything.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator

from virtlogd_driver import exception
from virtlogd_driver.console_log import generation

_ARRIVING = re.compile(r'(?P<name>.+\.history)\.arriving-(?P<size>[0-9]+)')

#: Path of a log here, and of the log there that goes on from it.
Move = tuple[str, str]


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


def carry(move: Move, limit: int, read: Callable[[str, int], bytes],
          send: Callable[[str, str], None] | None = None) -> None:
    """Make the history of a log that goes on elsewhere.

    :param limit: the most bytes to carry, the newest
    :param read: gives that many bytes of the log with a path
    :param send: copies a file of this host to a path of the other one; None:
        it is this host, or storage that both share
    :raises LogNotFound: there is no such log
    :raises LogError: it could not be read or written
    """
    here, there = move
    data = read(here, limit)
    directory, name = os.path.split(there)
    file = generation.parse(name)
    if file is None or file.generation == 0:
        raise exception.LogError(
            f'{there} is not the log of a guest that has moved.')
    history = generation.history_name(file.port, file.generation)
    if send is None:
        store(directory, history, data)
        return
    sent = f'{history}.arriving-{len(data)}'
    copy = f'{here}.leaving'
    with _writing(copy):
        _write_new(copy, data)
        send(copy, os.path.join(directory, sent))


def store(directory: str, name: str, data: bytes) -> None:
    """Put a history in place, whole.

    :raises LogError: it could not be written
    """
    path = os.path.join(directory, name)
    with _writing(f'{path}.new'):
        _write_new(f'{path}.new', data)
        os.rename(f'{path}.new', path)


@contextlib.contextmanager
def _writing(path: str) -> Iterator[None]:
    """Leave nothing of a file behind, and say why it failed."""
    try:
        yield
    except OSError as e:
        raise exception.LogError(
            f'The history of a console log could not be written to {path}: '
            f'{e.strerror}. The older output does not follow the '
            f'guest.') from e
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)


def _write_new(path: str, data: bytes) -> None:
    """Write a file that is not there yet; no link is followed."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW,
                 0o600)
    with open(fd, 'wb') as file:
        file.write(data)


def put_back(kept: str, directory: str) -> None:
    """Move histories that were set aside into a directory made anew."""
    os.makedirs(directory, exist_ok=True)
    for name in _names(kept):
        os.rename(os.path.join(kept, name), os.path.join(directory, name))
    os.rmdir(kept)


def receive(directory: str) -> list[str]:
    """Put in place what was sent here.

    What is not whole is removed; there is nothing to resume it from.

    :returns: the names of files that had not come whole
    """
    broken = []
    for sent in _names(directory):
        match = _ARRIVING.fullmatch(sent)
        if match is None:
            continue
        path = os.path.join(directory, sent)
        if os.lstat(path).st_size == int(match['size']):
            os.rename(path, os.path.join(directory, match['name']))
        else:
            os.unlink(path)
            broken.append(sent)
    return broken


def prune(directory: str) -> None:
    """Remove what a history that is in place has made superfluous."""
    names = _names(directory)
    for name in names:
        file = generation.parse(name)
        if file is None:
            continue
        live = generation.newest(names, file.port) or 0
        if (file.generation < live and generation.history_name(
                file.port, live) in names):
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
