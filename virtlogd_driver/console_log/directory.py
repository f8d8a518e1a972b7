# SPDX-License-Identifier: Apache-2.0
"""A read makes its system calls on one directory, which it holds open.

All names are looked up in the directory that was opened, so a directory that
is renamed meanwhile (a resize does that) doesn't mix two guests' files. No
link is followed, nothing blocks, and what can't be read is one of our errors.
"""

import ctypes
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

# statx(2), of linux/stat.h: Python's os.stat leaves out the time of birth.
_AT_EMPTY_PATH, _STATX_BTIME = 0x1000, 0x800
_MASK = struct.Struct('=I')
_BIRTH = struct.Struct('=qI')
_BIRTH_AT, _STATX_SIZE = 80, 256
_libc = ctypes.CDLL(None, use_errno=True)

#: What a file system says that has lost a file, or is damaged.
_DAMAGED = frozenset((
    errno.EIO, errno.ESTALE, errno.EUCLEAN, errno.EBADMSG, errno.ENODATA,
    errno.ENOTCONN, errno.EHOSTDOWN, errno.EREMOTEIO, errno.ETIMEDOUT))


class Files:
    """System calls are made on files that are open, wherever they are."""

    __slots__ = ()

    def fstat(self, fd: int) -> os.stat_result:
        return os.fstat(fd)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return os.pread(fd, size, offset)

    def preadv(self, fd: int, into: memoryview, offset: int) -> int:
        return os.preadv(fd, [into], offset)

    def version(self, fd: int) -> int:
        """Give what tells a file from an earlier one that had the same inode.

        0 where the file system keeps no such number (tmpfs, NFS).
        """
        try:
            answer: bytes = fcntl.ioctl(fd, _GET_VERSION, bytes(8))
        except OSError:
            return 0
        version: int = struct.unpack_from('=I', answer)[0]
        return version

    def born(self, fd: int) -> int | None:
        """Tell when a file was created, in nanoseconds since the epoch.

        None where the file system does not say (NFS; tmpfs before Linux 6.6).
        """
        answer = ctypes.create_string_buffer(_STATX_SIZE)
        try:
            failed = _libc.statx(
                fd, b'', _AT_EMPTY_PATH, _STATX_BTIME, answer)
        except AttributeError:   # a C library that is older than it
            return None
        if failed or not _MASK.unpack_from(answer)[0] & _STATX_BTIME:
            return None
        seconds, nanoseconds = _BIRTH.unpack_from(answer, _BIRTH_AT)
        born: int = seconds * 1_000_000_000 + nanoseconds
        return born

    def close(self, fd: int) -> None:
        os.close(fd)


class Directory(Files):
    """A directory holds logs; as a context manager it is closed."""

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

    def stat(self, name: str) -> os.stat_result:
        """Look at a file.

        :raises FileNotFoundError: there is none (right now)
        """
        return os.stat(name, dir_fd=self._fd, follow_symlinks=False)

    def check(self, status: os.stat_result, name: str) -> None:
        """Refuse an open file that can be no log.

        :raises LogNotRegular: it is a FIFO, a device or a directory
        """
        if not stat.S_ISREG(status.st_mode):
            raise self.not_regular(name)

    def names(self) -> list[str]:
        """Give all names, in no order.

        :raises LogRefused: the process may not list them
        :raises LogError: anything else
        """
        try:
            fd = os.open('.', os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC,
                         dir_fd=self._fd)
            try:
                return os.listdir(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise directory_error(error, self.path) from error

    def next_backup(self, live: str, first: int, end: int) -> int:
        """Give the number of the first backup that there is, or end.

        It looks for one after the other; cheaper than :meth:`open` for what is
        probably not there.

        :param live: name of the live file
        """
        fd = self._fd
        for number in range(first, end):
            try:
                os.stat(f'{live}.{number}', dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            except OSError:
                pass   # opened it says why
            return number
        return end

    def pause(self, turn: int) -> None:
        """Let virtlogd go on with its rotation, for longer from turn to turn.

        It takes 12 us as a rule; more where its process must wait for a CPU.
        """
        time.sleep(0.001 if turn > 3 else 0)

    def not_regular(self, name: str) -> exception.LogNotRegular:
        """Give the error for a file that was opened and can't be a log."""
        return exception.LogNotRegular(
            f'{self.path}/{name} is not a regular file, so it is not read as '
            f'a console log. Remove it, or correct the <log> of the domain.')

    def _meaning(self, error: OSError, name: str) -> exception.LogError:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            return self.not_regular(name)
        path = f'{self.path}/{name}'
        if error.errno in (errno.EACCES, errno.EPERM):
            return refused(path)
        return _unreadable(error, path)


def refused(path: str) -> exception.LogRefused:
    """Give the error for a file or directory that the process may not read."""
    return exception.LogRefused(
        f'{path} may not be read by this process. Run it as root, or let it '
        f'start privsep-helper (see [virtlogd_privileged] helper_command).')


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
        raise directory_error(error, path) from error


def open_below(root: str, parts: list[str],
               kind: type[Directory] = Directory) -> Directory:
    """Open a directory below a root without following a link below it.

    :param root: path of the root; the administrator's, so it may be or
        contain a link
    :param parts: names of the directories from the root down
    :param kind: what is made of it
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
        raise directory_error(error, path) from error
    return kind(fd, path)


def directory_error(error: OSError, path: str) -> exception.LogError:
    """Give the error for a directory that cannot be opened or listed."""
    if isinstance(error, PermissionError):
        return refused(path)
    match error.errno:
        case errno.ENOENT:
            return exception.LogNotFound(
                f'There is no directory {path}: the guest was never on this '
                f'host, or is gone from it.')
        case errno.ENOTDIR | errno.ELOOP:
            return exception.LogRefused(
                f'{path} is not a directory, or is a link, which is not '
                f'followed. Put the log where instances_path or '
                f'[virtlogd] log_directories says.')
    return _unreadable(error, path)


def _unreadable(error: OSError, path: str) -> exception.LogError:
    kind = (exception.LogDamaged if error.errno in _DAMAGED
            else exception.LogError)
    return kind(
        f'{path} cannot be read: {error.strerror}. See to the file system '
        f'that it is on.')
