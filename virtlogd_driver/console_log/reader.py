# SPDX-License-Identifier: Apache-2.0
"""A console log is read with no more privilege than its files ask for.

The process opens what it may itself; where a file that is needed is refused,
one privileged call opens the log instead. What was opened stays so for a while
(descriptor_store.py), and is read without any privilege.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import ParamSpec, TypeVar

from oslo_privsep.comm import PrivsepTimeout
from oslo_privsep.daemon import FailedToDropPrivileges

from virtlogd_driver import exception
from virtlogd_driver.console_log import handover, log, opened, privileged
from virtlogd_driver.console_log.chain import Segment
from virtlogd_driver.console_log.descriptor_store import DescriptorStore, Key
from virtlogd_driver.console_log.directory import Files
from virtlogd_driver.console_log.log import (
    LogRead,
    LogSince,
    Passed,
    Position,
    Taken,
    Wanted,
)

LOG = logging.getLogger(__name__)

#: What a call of the daemon raises if there is none.
_NO_DAEMON = (FailedToDropPrivileges, PrivsepTimeout, OSError)

#: Seconds until it is tried again to pass open files, once that has failed.
RETRY = 60.0

#: Receivers that are kept: of more reads at once each makes its own.
_MOST_RECEIVERS = 8

_P = ParamSpec('_P')
_T = TypeVar('_T')

__all__ = ['LogRead', 'LogSince', 'Position', 'can_pass', 'forget',
           'read_from', 'read_held', 'read_tail']


class _NotPassed(Exception):
    """Open files do not get from the privileged helper to this process."""


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
    :raises LogError: anything else
    """
    try:
        return _store.read_tail(path, limit, max_backups)
    except _NotPassed:
        data, position, exact, failure = _call(
            path, privileged.read_tail, path,
            min(limit, privileged.MAX_BYTES), max_backups)
        return LogRead(
            data, opened.unpack_position(position), exact, failure)


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
    :raises LogError: anything else
    """
    try:
        return _store.read_from(path, position, limit, max_backups, passed)
    except _NotPassed:
        data, packed, missed, behind, parts = _call(
            path, privileged.read_from, path,
            opened.pack_position(position),
            min(limit, privileged.MAX_BYTES), max_backups,
            None if passed is None else list(passed))
        return LogSince(
            data, opened.unpack_position(packed), missed, behind,
            tuple((device, inode, version, end, size)
                  for device, inode, version, end, size in parts))


def read_held(path: str, position: Position,
              limit: int) -> LogSince | None:
    """Read on in the files of a log that are open, whatever their names.

    :param path: path of the live file, as it was
    :param position: where the last read ended
    :param limit: most bytes to return
    :returns: None: the position is in none of them
    :raises LogError: a file cannot be read
    """
    return _store.read_held(path, position, limit)


def forget(directory: str) -> None:
    """Close what is open of the logs in a directory.

    To be called when their guest has stopped, moved or was deleted: a file
    that is held open takes its room on the disk even if it was removed.

    :param directory: path of the instance directory
    """
    _store.forget(directory)


def can_pass() -> bool:
    """Tell whether the privileged helper can pass open files to this process.

    Where it cannot, bytes go through privsep at each read: the answers are
    the same, at some hundred microseconds more.

    :raises LogRefused: there is no privileged helper
    """
    try:
        with _receiver() as receiver:
            if not _call('The console log of a guest',
                         privileged.open_nothing, receiver.address):
                return False
            found = receiver.take(1)
            if found is None:
                receiver.close()
    except _NotPassed:
        return False
    for descriptor in found or ():
        os.close(descriptor)
    return found is not None


def _open(path: str, wanted: Wanted,
          held: Mapping[Key, Segment]) -> Taken:
    """Open a log, as this process where it may.

    :raises _NotPassed: it may not, and no file can be passed to it
    """
    if not _is_refused(path):
        with contextlib.suppress(exception.LogRefused):
            return log.open_log(path, wanted, held)
    return _open_with_privilege(path, wanted, held)


def _is_refused(path: str) -> bool:
    """Tell beforehand, as that is cheaper than to be refused."""
    return (
        os.geteuid() != 0
        and not os.access(path, os.R_OK, effective_ids=True)
        and os.access(path, os.F_OK, effective_ids=True))


def _open_with_privilege(path: str, wanted: Wanted,
                         held: Mapping[Key, Segment]) -> Taken:
    if not _passing.is_to_be_tried():
        raise _NotPassed
    with _receiver() as receiver:
        packed = _call(path, privileged.open_log, path,
                       opened.pack_wanted(wanted), tuple(held),
                       receiver.address)
        come = None if packed is None else receiver.take(
            opened.count(packed))
        if come is None:
            receiver.close()
    if packed is None or come is None:
        _passing.failed()
        raise _NotPassed
    _passing.worked()
    try:
        return opened.unpack(packed, held, come, Files())
    except BaseException:
        for descriptor in come:
            os.close(descriptor)
        raise


@contextlib.contextmanager
def _receiver() -> Iterator[handover.Receiver]:
    """Give one that no other thread uses meanwhile."""
    try:
        receiver = _receivers.pop()
    except IndexError:
        try:
            receiver = handover.Receiver()
        except OSError as error:
            _passing.failed()
            raise _NotPassed from error
    try:
        yield receiver
    except BaseException:
        receiver.close()
        raise
    if receiver.closed or len(_receivers) >= _MOST_RECEIVERS:
        receiver.close()
    else:
        _receivers.append(receiver)


class _Passing:
    """It is known whether open files can be passed, and said once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: float | None = None

    def is_to_be_tried(self) -> bool:
        return (self._failed is None
                or self._clock() - self._failed >= RETRY)

    def failed(self) -> None:
        if self._failed is None:
            LOG.warning(
                'The privileged helper cannot pass open console logs to this '
                'process, so each read of one costs a privileged call. See '
                'whether it runs in the same network namespace, and whether a '
                'security module forbids it.')
        self._failed = self._clock()

    def worked(self) -> None:
        if self._failed is not None:
            LOG.info('The privileged helper passes open console logs again')
        self._failed = None


def _call(path: str, function: Callable[_P, _T], *arguments: _P.args,
          **names: _P.kwargs) -> _T:
    """Have the privileged helper do something. The one place that does.

    :raises LogRefused: there is no privileged helper
    """
    try:
        return function(*arguments, **names)
    except _NO_DAEMON as error:
        raise exception.LogRefused(
            f'{path} may only be read with privilege, and privsep-helper '
            f'could not be started or went away ({error}). See to the '
            f'rootwrap filter or to [virtlogd_privileged] helper_command.'
        ) from error


#: Those that are not in use.
_receivers: list[handover.Receiver] = []
_passing = _Passing()
_store = DescriptorStore(_open)
