# SPDX-License-Identifier: Apache-2.0
"""A path that others name is checked before a process of root's uses it.

Whoever may write a directory decides what its names lead to, and can change
his mind between a check and the use. So a path is walked name by name, each
looked up in the directory that was opened before, and

* a link is followed only where root alone could have made it;
* where the file itself has to be root's, so has every directory above it.
"""

import errno
import os
import stat

_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: As the kernel's (path_resolution(7)).
_MOST_LINKS = 40


class Untrusted(Exception):
    """A path that somebody else than root can turn elsewhere."""


def _owners() -> set[int]:
    """Give users that are as good as root here.

    In a user namespace that maps root alone the file system's own root is
    nobody.
    """
    return {0, os.geteuid(), os.stat('/').st_uid}


def _of_root(status: os.stat_result) -> bool:
    """Tell whether nobody but root may write it, by owner and mode.

    The group of an access control list shows in the mode as well.
    """
    others = stat.S_IWOTH | (stat.S_IWGRP if status.st_gid else 0)
    return status.st_uid in _owners() and not status.st_mode & others


def _keeps_names(status: os.stat_result) -> bool:
    """Tell whether what root has put into a directory stays what it is."""
    return _of_root(status) or (
        status.st_uid in _owners() and bool(status.st_mode & stat.S_ISVTX))


def _parts(path: str) -> list[str]:
    return [part for part in path.split('/') if part not in ('', '.')]


def open_directory(path: str, *, of_root: bool = False,
                   last_link: bool = True) -> int:
    """Open a directory, following no link but root's.

    :param path: absolute
    :param of_root: every directory on the way has to be one in which root's
        files stay what they are
    :param last_link: whether the last name may be a link of root's, too
    :returns: a descriptor (O_PATH), which is the caller's
    :raises Untrusted: there is a link that others could have made, or a
        directory that is not root's
    :raises OSError: there is no such directory
    """
    if not path.startswith('/') or '\0' in path:
        raise Untrusted(f'{path!r} is not an absolute path')
    left, links, walked = _parts(path), 0, '/'
    directory = os.open('/', _FLAGS)
    try:
        while left:
            status = os.fstat(directory)
            if of_root and not _keeps_names(status):
                raise Untrusted(_whose(walked, status))
            name, *left = left
            below = f'{walked.rstrip("/")}/{name}'
            found = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if not stat.S_ISLNK(found.st_mode):
                directory = _descend(directory, name)
                walked = below
                continue
            links += 1
            if (not left and not last_link) or not _made_by_root(
                    status, found):
                raise Untrusted(f'{below} is a link, which is not followed')
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            # Not before it is known to be root's: then it stays what it is.
            target = os.readlink(name, dir_fd=directory)
            left = [*_parts(target), *left]
            if target.startswith('/'):
                directory, walked = _descend(directory, '/'), '/'
        status = os.fstat(directory)
        if of_root and not _keeps_names(status):
            raise Untrusted(_whose(walked, status))
    except BaseException:
        os.close(directory)
        raise
    return directory


def _descend(directory: int, name: str) -> int:
    """Open a name in a directory, which is closed if that worked."""
    below = os.open(name, _FLAGS, dir_fd=directory)
    os.close(directory)
    return below


def _made_by_root(directory: os.stat_result, link: os.stat_result) -> bool:
    return _keeps_names(directory) and link.st_uid in _owners()


def _whose(path: str, status: os.stat_result) -> str:
    mode = stat.S_IMODE(status.st_mode)
    return (f'{path} (owner {status.st_uid}, group {status.st_gid}, mode '
            f'{mode:04o}) may be written by others than root')


def check_of_root(path: str) -> None:
    """Check that root alone decides what a file, or directory, holds.

    :raises Untrusted: somebody else may, or could exchange it
    :raises OSError: there is none
    """
    # Not normalized: ".." after a link is what the kernel takes it to be.
    path = os.path.join(os.getcwd(), path)
    for _ in range(_MOST_LINKS):
        above, name = os.path.split(path)
        directory = open_directory(above, of_root=True)
        try:
            status = os.stat(name or '.', dir_fd=directory,
                             follow_symlinks=False)
            if not stat.S_ISLNK(status.st_mode):
                if not _of_root(status):
                    raise Untrusted(_whose(path, status))
                return
            if not _made_by_root(os.fstat(directory), status):
                raise Untrusted(f'{path} is a link that is not root\'s')
            path = os.path.join(above, os.readlink(name, dir_fd=directory))
        finally:
            os.close(directory)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def check_log(path: str) -> os.stat_result | None:
    """Check that root may append to a file for its directory's owner.

    It is a regular file with one name, of root's or of who owns the
    directory. No link leads to it but root's, and to its directory none.

    :returns: the file; None: there is none, and it can be made
    :raises Untrusted: it is something else
    :raises OSError: its directory is not there
    """
    above, name = os.path.split(path)
    if name in ('', '.', '..'):
        raise Untrusted(f'{path!r} is not the path of a file')
    directory = open_directory(above, last_link=False)
    try:
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return None
        owners = {0, os.fstat(directory).st_uid}
    finally:
        os.close(directory)
    if stat.S_ISLNK(status.st_mode):
        raise Untrusted(f'{path} is a link, which is not followed')
    if not stat.S_ISREG(status.st_mode):
        raise Untrusted(f'{path} is not a regular file')
    if status.st_nlink != 1:
        raise Untrusted(f'{path} has {status.st_nlink} names (hard links)')
    if status.st_uid not in owners:
        raise Untrusted(
            f'{path} belongs to user {status.st_uid}, neither to root nor to '
            'who owns its directory')
    return status
