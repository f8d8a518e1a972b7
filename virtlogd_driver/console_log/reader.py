# SPDX-License-Identifier: Apache-2.0
"""Reading a console log, with no more privilege than its files ask for.

The process reads what it may itself; where a file that is needed is refused,
one privileged call reads the whole log instead.
"""

import contextlib
import os
from collections.abc import Callable, Collection
from typing import Any

from oslo_privsep.comm import PrivsepTimeout
from oslo_privsep.daemon import FailedToDropPrivileges

from virtlogd_driver import exception
from virtlogd_driver.console_log import log, mailbox, privileged
from virtlogd_driver.console_log.directory import open_directory
from virtlogd_driver.console_log.log import LogRead, LogSince, Passed, Position

#: What a call of the daemon raises if there is none.
_NO_DAEMON = (FailedToDropPrivileges, PrivsepTimeout, OSError)

__all__ = ['LogRead', 'LogSince', 'Position', 'read_from', 'read_tail']


def read_tail(
        path: str, limit: int, *,
        max_backups: int | None = None) -> LogRead:
    """Read the newest bytes of a log: see :func:`log.read_tail`.

    :param path: path of the live file
    :param limit: most bytes to return
    :param max_backups: virtlogd's, where known
    :raises LogNotFound: the log has no file
    :raises LogNotRegular: the newest file is a link, a directory, a device
    :raises LogRefused: it may not be read, with privilege neither
    """
    if not _is_refused(path):
        with contextlib.suppress(exception.LogRefused):
            directory_path, _, name = path.rpartition('/')
            with open_directory(directory_path or '/') as directory:
                return log.read_tail(
                    directory, name, limit, max_backups=max_backups)
    data, position, exact, older = _privileged(
        path, limit, lambda box: privileged.read_tail(
            path, limit, max_backups, box))
    return LogRead(data, privileged.unpack(position), exact, older)


def read_from(
        path: str, position: Position | None, limit: int, *,
        max_backups: int | None = None,
        passed: Collection[Passed] | None = None) -> LogSince:
    """Read what a log has from a position on: see :func:`log.read_from`.

    :param path: path of the live file
    :param position: where the last read ended; None: the very beginning
    :param limit: most bytes to return
    :param max_backups: virtlogd's, where known
    :param passed: files that are left out
    :raises LogNotFound: the log has no file
    :raises LogNotRegular: the newest file is a link, a directory, a device
    :raises LogRefused: it may not be read, with privilege neither
    """
    if not _is_refused(path):
        with contextlib.suppress(exception.LogRefused):
            directory_path, _, name = path.rpartition('/')
            with open_directory(directory_path or '/') as directory:
                return log.read_from(
                    directory, name, position, limit,
                    max_backups=max_backups, passed=passed)
    data, packed, missed, behind = _privileged(
        path, limit, lambda box: privileged.read_from(
            path, privileged.pack(position), limit, max_backups, box,
            None if passed is None else list(passed)))
    return LogSince(data, privileged.unpack(packed), missed, behind)


def _is_refused(path: str) -> bool:
    """Known beforehand, as is the rule, it is cheaper than to be refused."""
    return (
        os.geteuid() != 0
        and not os.access(path, os.R_OK, effective_ids=True)
        and os.access(path, os.F_OK, effective_ids=True))


def _privileged(
        path: str, limit: int,
        read: Callable[[mailbox.Address | None], tuple[Any, ...]]
) -> tuple[Any, ...]:
    """The answer of one call, with the data in its place.

    :raises LogRefused: there is no privileged daemon
    """
    try:
        if limit >= mailbox.WORTHWHILE:
            with mailbox.Mailbox() as box:
                data, *rest = read(box.address)
                if data is None:
                    data = box.take()
            if data is not None:
                return data, *rest
        return read(None)
    except _NO_DAEMON as error:
        raise _no_daemon(path, error) from error


def _no_daemon(path: str, error: Exception) -> exception.LogRefused:
    return exception.LogRefused(
        f'{path} may only be read with privilege, and privsep-helper could '
        f'not be started or went away ({error}). See to the rootwrap filter '
        f'or to [virtlogd_privileged] helper_command.')
