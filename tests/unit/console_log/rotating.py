# SPDX-License-Identifier: Apache-2.0
"""virtlogd's rotation is played one system call at a time, in a directory.

The directory is in memory, so that any interleaving with a reader can be had
at once and in any number. test_chain_files.py has the same on real files.
"""

import errno
import os
import random
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from virtlogd_driver.console_log.chain import FIRST_OF_CHAIN, Segment
from virtlogd_driver.console_log.descriptor_store import Key
from virtlogd_driver.console_log.directory import Directory
from virtlogd_driver.console_log.log import (
    MARKED_BYTES,
    Position,
    Taken,
    Wanted,
    take,
)

#: What the guest writes. Random, so that no other run of it looks the same.
STREAM = random.Random('console').randbytes(1 << 22)  # noqa: S311

#: One step of the rotator takes so many nanoseconds.
STEP_NS = 1_000_000


@dataclass(slots=True, eq=False)
class File:
    inode: int
    mode: int = stat.S_IFREG | 0o600
    data: bytearray = field(default_factory=bytearray)
    ctime_ns: int = 0
    mtime_ns: int = 0
    born_ns: int | None = 0
    version: int = 0
    #: Where in the stream the file begins.
    start: int = 0


class MemoryDirectory(Directory):
    """Names, inodes and descriptors, as ext4 has them.

    The inode number of a file that is gone is the first to be used again.
    """

    __slots__ = (
        '_next_fd', '_versions', 'before', 'clock_ns', 'files', 'opened',
        'pauses')

    def __init__(self) -> None:
        super().__init__(-1, '/memory')
        self.files: dict[str, File] = {}
        self.opened: dict[int, File] = {}
        #: Called before each system call of the reader that sees names or
        #: sizes.
        self.before: Callable[[], None] = lambda: None
        self.clock_ns = 0
        self._next_fd = 3
        self._versions = 0
        #: How often the reader has begun again.
        self.pauses = 0

    # The reader's side.

    def names(self) -> list[str]:
        self.before()
        return list(self.files)

    def born(self, fd: int) -> int | None:
        return self.opened[fd].born_ns

    def open(self, name: str) -> int:
        self.before()
        file = self._file(name)
        self._next_fd += 1
        self.opened[self._next_fd] = file
        return self._next_fd

    def fstat(self, fd: int) -> os.stat_result:
        self.before()
        file = self.opened[fd]
        return _status(file, file in self.files.values())

    def stat(self, name: str) -> os.stat_result:
        self.before()
        return _status(self._file(name))

    def exists(self, name: str) -> bool:
        self.before()
        return os.path.basename(name) in self.files

    def next_backup(self, live: str, first: int, end: int) -> int:
        for number in range(first, end):
            if self.exists(f'{live}.{number}'):
                return number
        return end

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return bytes(self.opened[fd].data[offset:offset + size])

    def preadv(self, fd: int, into: memoryview, offset: int) -> int:
        data = self.pread(fd, len(into), offset)
        into[:len(data)] = data
        return len(data)

    def version(self, fd: int) -> int:
        return self.opened[fd].version

    def close(self, fd: int) -> None:
        del self.opened[fd]

    def pause(self, turn: int) -> None:
        self.pauses += 1
        self.before()

    # virtlogd's side.

    def create(self, name: str, start: int, mode: int = 0o600) -> File:
        used = {file.inode for file in (
            *self.files.values(), *self.opened.values())}
        inode = next(n for n in range(1, len(used) + 2) if n not in used)
        self._versions += 1
        file = self.files[name] = File(
            inode, stat.S_IFREG | mode, start=start, ctime_ns=self.clock_ns,
            mtime_ns=self.clock_ns, born_ns=self.clock_ns,
            version=self._versions)
        return file

    def rename(self, old: str, new: str) -> None:
        if old in self.files:
            self.files[new] = self.files.pop(old)
            self.files[new].ctime_ns = self.clock_ns

    # The descriptor store's names, by paths.

    def look(self, path: str) -> os.stat_result | None:
        try:
            return self.stat(os.path.basename(path))
        except FileNotFoundError:
            return None

    def open_log(self, path: str, wanted: Wanted,
                 held: Mapping[Key, Segment]) -> Taken:
        """What a helper does for a descriptor store."""
        taken = take(self, os.path.basename(path), wanted)
        taken.keep(held, self)
        return taken

    def _file(self, name: str) -> File:
        if name not in self.files:
            raise FileNotFoundError(errno.ENOENT, 'not there', name)
        return self.files[name]


def _status(file: File, named: bool = True) -> os.stat_result:
    # The ten of the tuple, times as integers and as floats, then what
    # Linux adds: only the nanoseconds matter.
    return os.stat_result(
        (file.mode, file.inode, 1, int(named), 0, 0, len(file.data), 0, 0, 0),
        {'st_ctime_ns': file.ctime_ns, 'st_mtime_ns': file.mtime_ns})


class Rotator:
    """The log of one guest: what was written, and what is still there."""

    def __init__(
            self, directory: MemoryDirectory, max_backups: int,
            name: str = 'console.log') -> None:
        self.directory = directory
        self.max_backups = max_backups
        self.name = name
        #: Bytes of the stream that were written.
        self.written = 0
        #: Complete rotations.
        self.rotations = 0
        #: Fewest bytes there were at any instant since this was set.
        self.least = 0
        #: All files that there ever were.
        self.created: list[File] = []

    def open(self) -> None:
        """What virtlogd does for a new QEMU process, with append on."""
        if self.name not in self.directory.files:
            self.created.append(
                self.directory.create(self.name, self.written))

    def steps(self, sizes: Iterator[int]) -> Iterator[None]:
        """Write files of these sizes; each step is one system call."""
        for size in sizes:
            for part in (size // 2, size - size // 2):
                self.write(part)
                yield
            yield from self.rotate()

    def write(self, size: int) -> None:
        assert self.written + size <= len(STREAM)
        file = self.directory.files[self.name]
        file.data += STREAM[self.written:self.written + size]
        self.written += size
        file.mtime_ns = file.ctime_ns = self.directory.clock_ns
        self._tick()

    def rotate(self) -> Iterator[None]:
        """virRotatingFileWriterRollover: the oldest is renamed first."""
        directory = self.directory
        if self.max_backups == 0:
            directory.files.pop(self.name, None)
            self._tick()
            self.least = 0
            yield
        for number in range(self.max_backups - 1, -1, -1):
            old = f'{self.name}.{number - 1}' if number else self.name
            directory.rename(old, f'{self.name}.{number}')
            self._tick()
            if number == self.max_backups - 1:
                self.least = min(self.least, self.written - self.kept_from())
            yield
        self.created.append(directory.create(self.name, self.written))
        self.rotations += 1
        self._tick()
        yield

    def kept_from(self) -> int:
        """Where in the stream the oldest file begins that is still there."""
        return min(
            (file.start for file in self.directory.files.values()),
            default=self.written)

    def is_stream(self, start: int, data: bytes) -> bool:
        """Whether the guest wrote this from there on."""
        return (start + len(data) <= self.written
                and STREAM[start:start + len(data)] == data)

    def start_of(self, position: Position, data: bytes) -> int:
        """Where data begins that ends at a position."""
        for file in self.created:
            marked = file.data[:position.offset][-MARKED_BYTES:]
            if (file.inode == position.inode and position.mark
                    == file.version << 32 | zlib.crc32(marked)):
                return file.start + position.offset - len(data)
        raise AssertionError(f'no file ever had {position}')

    def _tick(self) -> None:
        self.directory.clock_ns += STEP_NS


def ends(data: bytes, earliest: int, latest: int) -> list[int]:
    """Where the run of the stream may end that the data is; none: it is none.

    :param earliest: where the stream ended when the read began
    :param latest: where it ended when the read was done
    """
    return [
        end for end in range(latest, earliest - 1, -1)
        if end >= len(data) and STREAM[end - len(data):end] == data]


def mark_first(directory: MemoryDirectory, name: str) -> None:
    """As :func:`chain.begin` leaves a file."""
    directory.files[name].mode |= FIRST_OF_CHAIN
