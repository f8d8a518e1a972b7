# SPDX-License-Identifier: Apache-2.0
"""This room changes a disk by these system calls, in this order.

Whatever is written is synced before the rename that puts it in place, and a
directory after its names have changed. A name that is there is never taken
by another file, except where a file replaces its own older version.

A disk that does not tell what it has is not one that has nothing: it is asked
once more, and then who asks gets its error.
"""

import contextlib
import errno
import fcntl
import functools
import os
import stat
import time
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

from oslo_log import log as logging

LOG = logging.getLogger(__name__)

_P = ParamSpec('_P')
_T = TypeVar('_T')

#: A FIFO or a device opens at once, to be refused by its type.
_READ = (os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
         | os.O_CLOEXEC)
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
#: A suffix of what is not written to its end yet.
NEW = '.new'
#: Where a directory itself cannot be locked (NFS).
_LOCK = 'console.lock'
#: Seconds between two looks at a lock that another process has.
_PAUSE = 0.01


def _tried_again(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let a call be tried once more where the disk fails.

    nova goes on, and deletes: what fails for a moment costs no log then. It is
    for looks, and for what makes a place for logs, renames them, or syncs
    names. Not for data: a second fsync of a file says nothing of what the
    first one has lost.
    """
    @functools.wraps(function)
    def trying(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return function(*args, **kwargs)
        except (FileNotFoundError, NotADirectoryError, FileExistsError):
            raise   # an answer
        except OSError as e:
            LOG.debug('Tried again: %s', e)
            return function(*args, **kwargs)

    return trying


@_tried_again
def names(directory: str) -> list[str]:
    """What is in a directory, sorted; nothing where there is none.

    :raises OSError: the disk does not tell
    """
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []


@_tried_again
def look(path: str, *, follow: bool = False) -> os.stat_result | None:
    """None where nothing has that name.

    :param follow: of a link, look at what it leads to
    :raises OSError: the disk does not tell
    """
    try:
        return os.stat(path) if follow else os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def exists(path: str) -> bool:
    """
    :raises OSError: as of look
    """
    return look(path) is not None


def may_exist(path: str) -> bool:
    """Whether it seems to be there, at a third of what exists costs.

    For who looks again: where the disk does not tell, it is not.
    """
    return os.access(path, os.F_OK, effective_ids=True,
                     follow_symlinks=False)


def is_directory(path: str, *, follow: bool = False) -> bool:
    """Whether it is one.

    :param follow: a link to one is one, too
    :raises OSError: as of look
    """
    status = look(path, follow=follow)
    return status is not None and stat.S_ISDIR(status.st_mode)


def size(path: str) -> int | None:
    """Bytes of a regular file; None where there is none.

    :raises OSError: as of look
    """
    status = look(path)
    return (status.st_size if status is not None
            and stat.S_ISREG(status.st_mode) else None)


@_tried_again
def read(path: str, limit: int, *, cut: bool = False) -> bytes:
    """Read a small file that others may have put there.

    :param limit: bytes
    :param cut: of a larger one its beginning is read
    :raises FileNotFoundError: there is none
    :raises ValueError: it is a link, no regular file, or larger
    """
    try:
        fd = os.open(path, _READ)
    except OSError as e:
        if is_irregular(e):
            raise ValueError(f'{path} is no regular file') from e
        raise
    try:
        # Before it is made a file object, which a directory cannot be.
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError(f'{path} is no regular file')
        with os.fdopen(fd, 'rb', closefd=False) as file:
            data = file.read(limit + 1)
    finally:
        os.close(fd)
    if len(data) > limit and not cut:
        raise ValueError(f'{path} has more than {limit} bytes')
    return data[:limit]


def is_irregular(error: OSError) -> bool:
    """Whether what was opened to be read is a link, a socket or a device."""
    return error.errno in (errno.ELOOP, errno.ENXIO)


def open_to_read(path: str) -> int:
    """:raises OSError: there is none, or it is a link"""
    return _open(path, _READ)


@_tried_again
def _open(path: str, flags: int) -> int:
    return os.open(path, flags)


@_tried_again
def sync_directory(directory: str) -> None:
    """Make the names in a directory survive a power cut."""
    _sync(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))


def sync(path: str) -> None:
    """Make what is in a file survive a power cut."""
    _sync(_open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))


def _sync(fd: int) -> None:
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write(path: str, data: bytes, mode: int = 0o600) -> None:
    """Write a new file to the disk.

    :raises FileExistsError: there is one
    :raises OSError: it cannot be written; nothing is left then
    """
    fd = os.open(path, _NEW, mode)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view):]
        os.fsync(fd)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise
    finally:
        os.close(fd)


def replace(path: str, data: bytes) -> None:
    """Replace a file as a whole, or write it.

    :raises OSError: nothing can be written; the old one is there then
    """
    new = f'{path}{NEW}'
    remove(new)
    write(new, data)
    os.rename(new, path)
    sync_directory(os.path.dirname(path))


def remove(path: str) -> None:
    """Remove a file, if there is one."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def make_directory(path: str) -> None:
    """Make a directory that survives a power cut; there may be one."""
    if not is_directory(path):
        # A mkdir that has failed may have made it.
        with contextlib.suppress(FileExistsError):
            _mkdir(path)
        sync_directory(os.path.dirname(path))


@_tried_again
def _mkdir(path: str) -> None:
    os.mkdir(path, 0o700)


def rename(here: str, there: str) -> None:
    """Rename, where nothing has the new name.

    The caller has the lock of the guest; it syncs both directories.

    :raises FileExistsError: something has
    """
    if exists(there):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), there)
    _rename(here, there)


@_tried_again
def _rename(here: str, there: str) -> None:
    os.rename(here, there)


def remove_tree(path: str) -> None:
    """Remove a directory with all that is in it, or a file, or nothing.

    :raises OSError: something stays
    """
    if not is_directory(path):
        remove(path)
        return
    # No recursion: another host may have sent any number of them.
    directories = [path]
    for directory in directories:
        for name in names(directory):
            inner = os.path.join(directory, name)
            if is_directory(inner):
                directories.append(inner)
            else:
                remove(inner)
    for directory in reversed(directories):
        os.rmdir(directory)


@contextlib.contextmanager
def locked(directory: str, seconds: float) -> Iterator[None]:
    """Hold the lock of a directory, against processes of all hosts.

    :param seconds: that it is waited for the others
    :raises OSError: they take longer (EAGAIN)
    """
    fd = _open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + seconds
        itself = True
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as e:
                if itself and e.errno in (errno.EBADF, errno.EINVAL):
                    # NFS: a lock is for who may write.
                    itself = False
                    file = os.open(
                        os.path.join(directory, _LOCK),
                        os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
                        | os.O_CLOEXEC, 0o600)
                    os.close(fd)
                    fd = file
                elif (e.errno != errno.EAGAIN
                        or time.monotonic() > deadline):
                    raise
                else:
                    time.sleep(_PAUSE)
        yield
    finally:
        os.close(fd)
