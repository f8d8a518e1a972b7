# SPDX-License-Identifier: Apache-2.0
"""The system calls of a read, on one directory held open.

All names are looked up in the directory that was opened, so a directory that
is renamed meanwhile (a resize does that) doesn't mix two guests' files. No
link is followed, nothing blocks, and what can't be read is one of our errors.
"""

import errno
import fcntl
import os
import stat
import struct
import time
from types import TracebackType
from typing import Self

from virtlogd_driver import exception

#: A FIFO or a device opens at once, to be refused by its type.
_FILE_FLAGS = (
    os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)

#: O_PATH: searching the directory is enough, listing it is not needed.
_DIRECTORY_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC

#: FS_IOC_GETVERSION of linux/fs.h, as the generic ABI encodes it. Where
#: another number is meant by it the file system answers ENOTTY.
_GET_VERSION = 0x80007601 | struct.calcsize('l') << 16


class Directory:
    """A directory that holds logs; a context manager that closes it."""

    __slots__ = ('_fd', 'path')

    def __init__(self, fd: int, path: str) -> None:
        """
        :param fd: descriptor of the directory, which this object will close
        :param path: its path, for messages only
        """
        self._fd = fd
        self.path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(
            self, kind: type[BaseException] | None,
            error: BaseException | None,
            traceback: TracebackType | None) -> None:
        os.close(self._fd)

    def open(self, name: str) -> int:
        """Open a file for reading.

        :raises FileNotFoundError: there is none (right now)
        :raises LogNotRegular: it is a link or a socket
        :raises LogRefused: the process may not read it
        :raises LogError: anything else
        """
        try:
            return os.open(name, _FILE_FLAGS, dir_fd=self._fd)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._meaning(error, name) from error

    def fstat(self, fd: int) -> os.stat_result:
        return os.fstat(fd)

    def stat(self, name: str) -> os.stat_result:
        """:raises FileNotFoundError: there is none (right now)"""
        return os.stat(name, dir_fd=self._fd, follow_symlinks=False)

    def exists(self, name: str) -> bool:
        return os.access(name, os.F_OK, dir_fd=self._fd)

    def next_backup(self, live: str, first: int, end: int) -> int:
        """The number of the first backup that there is, or end.

        It looks for one after the other; cheaper than :meth:`open` for what is
        probably not there.

        :param live: name of the live file
        """
        fd = self._fd
        for number in range(first, end):
            if os.access(f'{live}.{number}', os.F_OK, dir_fd=fd):
                return number
        return end

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return os.pread(fd, size, offset)

    def preadv(self, fd: int, into: memoryview, offset: int) -> int:
        return os.preadv(fd, [into], offset)

    def version(self, fd: int) -> int:
        """What tells a file from an earlier one that had the same inode.

        0 where the file system keeps no such number (tmpfs, NFS).
        """
        try:
            answer: bytes = fcntl.ioctl(fd, _GET_VERSION, bytes(8))
        except OSError:
            return 0
        version: int = struct.unpack_from('=I', answer)[0]
        return version

    def close(self, fd: int) -> None:
        os.close(fd)

    def pause(self, turn: int) -> None:
        """Let virtlogd go on with its rotation, for longer from turn to turn.

        It takes 12 us as a rule; more where its process must wait for a CPU.
        """
        time.sleep(0.001 if turn > 3 else 0)

    def not_regular(self, name: str) -> exception.LogNotRegular:
        """The error for a file that was opened and can't be a log."""
        return exception.LogNotRegular(
            f'{self.path}/{name} is not a regular file, so it is not read as '
            f'a console log. Remove it, or correct the <log> of the domain.')

    def not_found(self, name: str) -> exception.LogNotFound:
        """The error for a log that has no file at all."""
        return exception.LogNotFound(
            f'There is no console log {self.path}/{name}. It is written from '
            f'the first start of a guest with a <log> on.')

    def _meaning(self, error: OSError, name: str) -> exception.LogError:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            return self.not_regular(name)
        path = f'{self.path}/{name}'
        if error.errno in (errno.EACCES, errno.EPERM):
            return refused(path)
        return exception.LogError(f'{path}: {error.strerror}')


def refused(path: str) -> exception.LogRefused:
    """The error for a file or directory that the process may not read."""
    return exception.LogRefused(
        f'{path} may not be read by this process. Run it as root, or let it '
        f'start privsep-helper (see [virtlogd_privileged] helper_command).')


def is_regular(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode)


def open_directory(path: str) -> Directory:
    """Open a directory with the rights of the process itself.

    Links on the way are followed: that gives the caller nothing that it can't
    read anyway.

    :raises LogNotFound: there is no such directory
    :raises LogRefused: the process may not search it
    """
    try:
        return Directory(os.open(path, _DIRECTORY_FLAGS), path)
    except OSError as error:
        raise _directory_error(error, path) from error


def open_below(root: str, parts: list[str]) -> Directory:
    """Open a directory below a root without following a link below it.

    :param root: path of the root; the administrator's, so it may be or
        contain a link
    :param parts: names of the directories from the root down
    :raises LogNotFound: one of them is missing
    :raises LogRefused: one of them is a link, or not a directory
    """
    path = root
    try:
        fd = os.open(root, _DIRECTORY_FLAGS)
        for part in parts:
            path = f'{path}/{part}'
            above = fd
            try:
                fd = os.open(
                    part, _DIRECTORY_FLAGS | os.O_NOFOLLOW, dir_fd=above)
            finally:
                os.close(above)
    except OSError as error:
        raise _directory_error(error, path) from error
    return Directory(fd, path)


def _directory_error(error: OSError, path: str) -> exception.LogError:
    match error.errno:
        case errno.ENOENT:
            return exception.LogNotFound(
                f'There is no directory {path}: the guest was never on this '
                f'host, or is gone from it.')
        case errno.EACCES | errno.EPERM:
            return refused(path)
        case errno.ENOTDIR | errno.ELOOP:
            return exception.LogRefused(
                f'{path} is not a directory, or is a link, which is not '
                f'followed. Put the log where instances_path or '
                f'[virtlogd] log_directories says.')
    return exception.LogError(f'{path}: {error.strerror}')
