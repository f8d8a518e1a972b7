# SPDX-License-Identifier: Apache-2.0
"""Carry what a guest wrote to where it goes on.

A guest that moves starts a new generation (generation.py), and everything
older is carried there as one file per port. Nobody writes the old files any
more by then. They are staged in a directory of their own, each under a name
that says what is in it; that directory is copied to the other host at one go
(or made in place), and the receiving side takes out of it what is whole. So a
history is never seen half, and nothing has to be renamed from afar.

A size does not tell what is whole: scp writes at many places of a file at
once, and where a disk is full for a moment leaves holes in a file of full
length. So the names have a digest. And scp copies the files in any order: one
of them lists them all.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Collection, Iterable, Mapping

from virtlogd_driver import exception
from virtlogd_driver.console_log import chain, generation, log
from virtlogd_driver.console_log.directory import open_directory
from virtlogd_driver.history import boot

#: The staging directory; it is copied as a whole, under the same name.
STAGING = 'console.moving'

#: The list of all that is staged.
_LIST = 'console.staged'

_STAGED = re.compile(r'(?P<name>.+)\.(?P<digest>[0-9a-f]{32})')

#: Path of a log here, and of the log there that goes on from it.
Move = tuple[str, str]

#: Gives the newest bytes of the log with a path, at most so many.
Read = Callable[[str, int], bytes]

#: Gives how many bytes of the log with a path follow a position; None where
#: it is not there any more.
Following = Callable[[str, log.Position], int | None]


def moves(here: str, there: str) -> list[Move]:
    """What of one directory is to be carried to another, port by port.

    :param here: path of the instance directory; nobody writes logs there now
    :param there: path of the instance directory that the guest goes on in
    """
    names = _names(here)
    found = []
    for port in _ports(names):
        live = generation.newest(names, port) or 0
        found.append((
            os.path.join(here, generation.live_name(port, live)),
            os.path.join(there, generation.live_name(port, live + 1))))
    return found


def _ports(names: Iterable[str]) -> list[int]:
    """Serial ports that there are logs of."""
    return sorted({file.port for file in map(generation.parse, names)
                   if file is not None})


def superseded(directory: str) -> list[Move]:
    """What is older than the log that was written last, port by port.

    A guest that is evacuated goes on in a new file beside that one: the host
    that is lost may still write it. What had gone before it is nobody's.

    :param directory: path of the instance directory, on shared storage
    """
    names = _names(directory)
    found = []
    for port in _ports(names):
        last = next_generation(directory, port) - 1
        if any(file.port == port and file.generation < last
               for file in map(generation.parse, names) if file is not None):
            found.append((
                os.path.join(directory, generation.live_name(port, last - 1)),
                os.path.join(directory, generation.live_name(port, last))))
    return found


def overtaken(directory: str, in_use: Collection[str]) -> list[Move]:
    """Logs that their guests have left for an older name, port by port.

    nova's own driver names them all the same. (The next log of a guest that
    is just leaving has no history yet.)

    :param directory: path of the instance directory
    :param in_use: names of the logs that the guest's domain has
    """
    names = _names(directory)
    found = []
    for port, number in sorted(_generations(in_use)):
        newest = generation.newest(names, port) or 0
        if (newest > number
                and generation.history_name(port, newest) in names):
            found.append((
                os.path.join(directory, generation.live_name(port, newest)),
                os.path.join(directory, generation.live_name(port, number))))
    return found


def detached(directory: str) -> set[str]:
    """Paths of histories that the logs do not go on from."""
    return {os.path.join(directory, name) for name in _names(directory)
            if (file := generation.parse(name)) is not None
            and file.history and file.generation == 0}


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
        one it has just begun the next, or there is one that nobody writes. It
        does not know which log the guest writes here: where that is still
        empty it takes it for one of those. So what goes on there is never
        what is written here, and it is begun here where it has not been.

        :param here: path of its log here, if it has one
        """
        directory = (self._directory if here is None
                     else os.path.dirname(here))
        following = 1
        if self.shared:
            following = next_generation(directory, port)
            if here is not None:
                file = generation.parse(os.path.basename(here))
                following = max(following, 1 + (
                    file.generation if file is not None else 0))
        there = os.path.join(directory,
                             generation.live_name(port, following))
        if here is None:
            here = os.path.join(directory, generation.live_name(
                port, following - 1 if self.shared
                else generation.newest(_names(directory), port) or 0))
        if self.shared:
            # Less is joined without, and the guest moves all the same.
            with contextlib.suppress(OSError):
                chain.begin(there)
        self._moves[port] = here, there
        return there

    def moves(self) -> list[Move]:
        """What is to be carried once the guest has left."""
        return [self._moves[port] for port in sorted(self._moves)]


def next_generation(directory: str, port: int) -> int:
    """The generation that a guest which comes to a directory begins.

    One that was begun for a migration which has failed is taken again.
    """
    newest = generation.newest(_names(directory), port) or 0
    if newest and is_as_begun(os.path.join(
            directory, generation.live_name(port, newest))):
        return newest
    return newest + 1


def is_as_begun(live: str) -> bool:
    """Nothing was ever written to a log, nor rotated away."""
    try:
        status = os.lstat(live)
    except FileNotFoundError:
        return False
    return (status.st_size == 0
            and bool(status.st_mode & chain.FIRST_OF_CHAIN))


def stage(moves: Iterable[Move], directory: str, limit: int, read: Read,
          following: Following) -> list[exception.LogError]:
    """Fill a staging directory with the histories of logs.

    :param directory: path of the directory that it is made in, anew
    :param limit: the most bytes to carry of one port, the newest
    :returns: why ports are left out
    :raises OSError: nothing can be written
    """
    moves = list(moves)
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
        if data:
            name = generation.history_name(file.port, file.generation)
            _write(staging, name, data)
    boots = _boots(moves, following) if moves else b''
    if boots:
        _write(staging, boot.FILE, boots)
    _write(staging, _LIST, json.dumps(_names(staging)).encode())
    return failed


def _boots(moves: list[Move], following: Following) -> bytes:
    """Positions mean nothing elsewhere: how many bytes follow them does."""
    lives = {}
    for here, _ in moves:
        file = generation.parse(os.path.basename(here))
        if file is not None:
            lives[file.port] = here
    lines = []
    for noted in boot.read(os.path.dirname(moves[0][0])):
        lines.append(json.dumps({'time': noted.time, 'following': {
            port: None if position is None or port not in lives
            else _count(following, lives[port], position)
            for port, position in noted.positions.items()}}))
    return '\n'.join(lines).encode()


def _count(following: Following, path: str,
           position: log.Position) -> int | None:
    """None as well where the log cannot be read, as stage has said."""
    try:
        return following(path, position)
    except exception.LogError:
        return None


def _write(staging: str, name: str, data: bytes) -> None:
    digest = _digest(data).hexdigest()
    with open(os.path.join(staging, f'{name}.{digest}'), 'xb',
              opener=_private) as out:
        out.write(data)


def _private(path: str, flags: int) -> int:
    """As virtlogd creates the logs themselves."""
    return os.open(path, flags, 0o600)


def _digest(data: bytes = b'') -> 'hashlib.blake2b':
    return hashlib.blake2b(data, digest_size=16)


def _digest_of(path: str) -> str | None:
    """None: it is no regular file."""
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return None
    digest = _digest()
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def is_coming(directory: str) -> bool:
    """Whether something that was staged elsewhere has begun to come."""
    return os.path.isdir(os.path.join(directory, STAGING))


def is_whole(directory: str) -> bool:
    """Whether all that was staged elsewhere has come to a directory."""
    staging = os.path.join(directory, STAGING)
    for staged in _names(staging):
        name = _whole_name(staging, staged)
        if name == _LIST:
            with open(os.path.join(staging, staged), 'rb') as file:
                listed = json.load(file)
            break
    else:
        return False
    return all(_whole_name(staging, staged) for staged in listed)


def _whole_name(staging: str, staged: str) -> str | None:
    """The name of what is staged; None where it is not there, or not whole."""
    match = _STAGED.fullmatch(staged)
    with contextlib.suppress(FileNotFoundError):
        if match is not None and match['digest'] == _digest_of(
                os.path.join(staging, staged)):
            return match['name']
    return None


def receive(staged_in: str, directory: str,
            in_use: Collection[str] = ()) -> list[str]:
    """Put what was staged in place.

    Nothing more comes: what is not whole is removed, as there is nothing to
    resume it from.

    :param staged_in: path of the directory that it was staged in; the
        instance directory itself, or one beside it, which is removed
    :param directory: path of the instance directory
    :param in_use: names of the logs that the guest's domain has here. Where
        nova's own driver has booted it, that is an older name than that of a
        history which came before, and what follows from it is lost: it is
        then the history of that log, and not joined

    :returns: the names of histories that had not come whole
    """
    staging = os.path.join(staged_in, STAGING)
    used = dict(_generations(in_use))
    broken = []
    sizes = {}
    boots = b''
    for staged in _names(staging):
        path = os.path.join(staging, staged)
        name = _whole_name(staging, staged)
        if name is None:
            broken.append(staged)
            # At once: it may be what fills the disk.
            with contextlib.suppress(OSError):
                os.unlink(path)
        elif name == boot.FILE:
            with open(path, 'rb') as file:
                boots = file.read()
        elif name != _LIST:
            name = _put_as(name, used)
            # Where the copy has made it another user's, that user alone can.
            with contextlib.suppress(PermissionError):
                os.chmod(path, 0o600)
            os.rename(path, os.path.join(directory, name))
            sizes[name] = os.lstat(os.path.join(directory, name)).st_size
    # They are counted in the histories.
    if boots:
        _receive_boots(boots, sizes, directory)
    shutil.rmtree(staging if staged_in == directory else staged_in,
                  ignore_errors=True)
    _prune(directory, used, sizes)
    return broken


def _generations(names: Iterable[str]) -> set[tuple[int, int]]:
    """Port and generation of each log's name."""
    return {(file.port, file.generation)
            for file in map(generation.parse, names) if file is not None}


def _put_as(history: str, used: Mapping[int, int]) -> str:
    """The name that a history gets: not of a newer log than is in use.

    :param used: by serial port, the generation that the guest writes
    """
    file = generation.parse(history)
    if file is None or used.get(file.port, file.generation) >= file.generation:
        return history
    return generation.history_name(file.port, used[file.port])


def _receive_boots(lines: bytes, sizes: dict[str, int],
                   directory: str) -> None:
    """Give the starts that have come their positions here.

    :param sizes: of the histories that are in place, by their names
    """
    histories = {file.port: name for name in sizes
                 if (file := generation.parse(name)) is not None}

    def join(present: list[boot.Boot]) -> list[boot.Boot]:
        # Of ports of which nothing has come, or that follow what has come:
        # their files have stayed.
        stayed = {noted.time: noted.positions for noted in present}
        come = []
        for line in lines.splitlines():
            values = json.loads(line)
            positions = dict(stayed.get(values['time'], {}))
            for port, count in values['following'].items():
                name = histories.get(int(port))
                if name is None or count is None:
                    positions.setdefault(int(port), None)
                    continue
                offset = max(0, sizes[name] - count)
                positions[int(port)] = log.position_at(
                    opened, name, offset) if offset else None
            come.append(boot.Boot(values['time'], positions))
        return [*come, *[
            noted for noted in present if noted.time > come[-1].time]]

    with open_directory(directory) as opened:
        boot.change(directory, join)


def _prune(directory: str, used: Mapping[int, int],
           come: Collection[str]) -> None:
    """Remove what a history that is in place has made superfluous.

    It has what the older files had, unless it is empty: then they had nothing
    that surely goes on, and it is not for it to remove them.

    :param used: ports, and their generations that stay
    :param come: names of the histories that have just been put in place
    """
    names = _names(directory)
    histories = [name for name in names if _is_history(name)
                 and _size(os.path.join(directory, name))]
    for name in names:
        file = generation.parse(name)
        if file is None:
            continue
        stays = used.get(file.port)
        newest = generation.newest(histories, file.port) or 0
        if file.generation != stays and (file.generation < newest or (
                stays is not None
                and generation.history_name(file.port, stays) in come)):
            os.unlink(os.path.join(directory, name))


def _is_history(name: str) -> bool:
    file = generation.parse(name)
    return file is not None and file.history


def _size(path: str) -> int:
    """Bytes; 0 where it is not there."""
    try:
        return os.lstat(path).st_size
    except FileNotFoundError:
        return 0


def remove_begun(directory: str, in_use: Collection[str]) -> None:
    """Remove the empty logs that a refused migration left behind.

    :param in_use: names of the logs that the guest still writes
    """
    used = dict(_generations(in_use))
    for name in _names(directory):
        file = generation.parse(name)
        path = os.path.join(directory, name)
        if (file is not None and file.generation > used.get(file.port, 0)
                and is_as_begun(path)):
            os.unlink(path)


def remove_all(directory: str) -> None:
    """Remove the logs of a guest that has gone, where its directory stays.

    If it comes again it must not append to what it wrote then.
    """
    for name in _names(directory):
        if name == boot.FILE or generation.parse(name) is not None:
            os.unlink(os.path.join(directory, name))


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []
