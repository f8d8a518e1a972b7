# SPDX-License-Identifier: Apache-2.0
"""Reading a console log, with no more privilege than its files ask for.

The process reads what it may itself; where a file that is needed is refused,
one privileged call reads the whole log instead.
"""

import contextlib
import os
from collections.abc import Iterator

from oslo_privsep.comm import PrivsepTimeout
from oslo_privsep.daemon import FailedToDropPrivileges

from virtlogd_driver import exception
from virtlogd_driver.console_log import log, privileged
from virtlogd_driver.console_log.directory import open_directory
from virtlogd_driver.console_log.log import LogRead, LogSince, Position

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
    try:
        directory_path, name = os.path.split(path)
        with open_directory(directory_path) as directory:
            return log.read_tail(
                directory, name, limit, max_backups=max_backups)
    except exception.LogRefused:
        with _daemon(path):
            data, position, exact, older = privileged.read_tail(
                path, limit, max_backups)
        return LogRead(data, privileged.unpack(position), exact, older)


def read_from(
        path: str, position: Position | None, limit: int, *,
        max_backups: int | None = None) -> LogSince:
    """Read what a log has from a position on: see :func:`log.read_from`.

    :param path: path of the live file
    :param position: where the last read ended; None: the very beginning
    :param limit: most bytes to return
    :param max_backups: virtlogd's, where known
    :raises LogNotFound: the log has no file
    :raises LogNotRegular: the newest file is a link, a directory, a device
    :raises LogRefused: it may not be read, with privilege neither
    """
    try:
        directory_path, name = os.path.split(path)
        with open_directory(directory_path) as directory:
            return log.read_from(
                directory, name, position, limit, max_backups=max_backups)
    except exception.LogRefused:
        with _daemon(path):
            data, packed, missed, behind = privileged.read_from(
                path, privileged.pack(position), limit, max_backups)
        return LogSince(data, privileged.unpack(packed), missed, behind)


@contextlib.contextmanager
def _daemon(path: str) -> Iterator[None]:
    """Name the remedy where there is no privileged daemon to ask."""
    try:
        yield
    except (FailedToDropPrivileges, PrivsepTimeout, OSError) as error:
        raise exception.LogRefused(
            f'{path} may only be read with privilege, and privsep-helper '
            f'could not be started or went away ({error}). See to the '
            f'rootwrap filter or to [virtlogd_privileged] helper_command.'
        ) from error
