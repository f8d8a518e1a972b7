# SPDX-License-Identifier: Apache-2.0
"""What waits in an outbox is delivered to the host that its guest is on.

Each attempt asks, copies or waits, and leaves a state for the next one.
carrier.py makes one after the other.
"""

import contextlib
import os
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from oslo_concurrency import processutils
from oslo_log import log as logging

from virtlogd_driver import exception
from virtlogd_driver.console_log import reader
from virtlogd_driver.history import files, logs, outbox, record

LOG = logging.getLogger(__name__)

#: Seconds until a copy that has failed is tried again, the first time. Twice
#: as long from time to time.
RETRY = 5.0
#: And until it is asked whether one that was made has been put in place.
ASK = 0.5
LONGEST = 3600.0
#: How often it is asked for what was copied until it is said that it has not
#: come: two minutes.
ASKED = 8

#: Characters of what a command has said.
_LONGEST = 1000

#: nova.virt.libvirt.utils.copy_image.
Copy = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Target:
    """A guest's history is to go there now."""

    #: Address of the host.
    address: str
    #: Path of the instance directory there.
    directory: str
    #: It has moved on: what was on its way may be there with the rest.
    moved_on: bool = False
    #: It is being started there, and its directory renamed: nothing is copied
    #: until that is over.
    busy: bool = False
    #: Something is done to it: it may just leave, and its directory be gone.
    moving: bool = False


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """The guest is where its history cannot be put in place."""

    #: For people; '': it may have come there with the rest, which is not known
    #: yet.
    reason: str


#: Where a departure's history goes now; None: the instance was deleted.
Where = Callable[[outbox.Departure], Target | Elsewhere | None]


@dataclass(frozen=True, slots=True)
class Delivery:
    """Lets another host have what waits for it in an outbox."""

    #: Copies a file or directory to a host, or back: (source, destination,
    #: host=..., receive=...).
    copy: Copy
    #: The most bytes that follow a serial port.
    limit: int
    #: Seconds that a copy to another host may take.
    timeout: float
    #: virtlogd's, where known: see chain.snapshot.
    max_backups: int | None = None

    def attempt(self, path: str, where: Where,
                patience: float = 0.0) -> float | None:
        """Try once.

        :param path: of the outbox
        :param patience: seconds to wait for another process that tries just
            now
        :returns: seconds until the next time; None: it is done
        """
        try:
            with files.locked(path, patience):
                return self._attempt(path, where)
        except OSError as e:
            LOG.debug('%s: %s', path, e)
            # A disk that fails for a moment does not show what it has either.
            with contextlib.suppress(OSError):
                if not files.is_directory(path):
                    return None
            return RETRY

    def _attempt(self, path: str, where: Where) -> float | None:
        departure, before = outbox.load(path), outbox.load_state(path)
        if departure is None:
            return LONGEST
        if logs.received(outbox.directory_of(path)).get(departure.id) == '':
            # The guest is here again, and has brought it along.
            outbox.finish(path, departure)
            return None
        after: outbox.State | None
        try:
            target = where(departure)
            if target is None:
                outbox.discard(path)
                return None
            if isinstance(target, Elsewhere):
                after = before.again(target.reason)
            else:
                try:
                    after = self._carry(path, departure, before, target)
                except exception.LogError:
                    if not before.copied or where(departure) == target:
                        raise
                    # What had been there has left meanwhile, with the guest.
                    after = before.again()
        except (exception.VirtlogdDriverError, OSError,
                record.InvalidRecord) as e:
            if isinstance(e, FileNotFoundError) and not files.is_directory(
                    path):
                # It was removed meanwhile: its guest is here again, or gone.
                return None
            after = before.again(str(e))
        except Exception as e:
            LOG.exception(
                'What guest %s wrote before it left this host could not be '
                'sent, for a reason that is not foreseen. It is kept in %s, '
                'and the copy is tried again', departure.guest, path)
            after = before.again(repr(e))
        if after is None:
            LOG.info('What guest %s wrote before it left has followed it to '
                     '%s', departure.guest,
                     departure.host or departure.address)
            return None
        if after.reason and after.reason != before.reason:
            LOG.warning(
                'What guest %s wrote before it left this host has not '
                'followed it yet, so that its user does not see it: %s. It '
                'is kept in %s, and the copy is tried again; '
                '"virtlogd-console history %s --retry" does so now',
                departure.guest, after.reason, path, departure.guest)
        outbox.save_state(path, after)
        if after.final:
            return LONGEST
        first = ASK if after.copied else RETRY
        return min(LONGEST, float(first * 2 ** min(after.attempts, 20)))

    def _carry(self, path: str, departure: outbox.Departure,
               before: outbox.State,
               target: Target) -> outbox.State | None:
        """:returns: None: the other host has all, and it is removed here"""
        if before != outbox.State() or target.moved_on or target.busy:
            refused = self._received(path, departure, target)
            if refused == '':
                outbox.finish(path, departure)
                return None
            if refused is not None:
                return replace(before.again(
                    f'{target.address} has refused it: {refused}'),
                    final=True)
            if target.busy:
                return before.again()
            late = not before.copied or before.attempts + 1 >= ASKED
            if target.moved_on:
                # What was copied may still be on its way from there.
                return before.again(
                    f'the guest went on to {target.address} before it had '
                    f'followed it' if late else None)
            if before.copied:
                if self._is_there(path, target):
                    return before.again(
                        f'it was copied to {target.address}, which has not '
                        f'put it in place: it may have another driver'
                        if late else None)
                # It may have been put in place between the two questions.
                if self._received(path, departure, target) == '':
                    outbox.finish(path, departure)
                    return None
                if target.moving:
                    return before.again()
        staged = outbox.stage(
            path, self.limit, self._read, self._following)
        self._copy(staged, f'{target.directory}/', target.address)
        if not before.copied:
            return outbox.State(copied=True)
        vain = (f'it was copied to {target.address} again and again, which '
                f'has not kept it: the log of nova-compute there says why')
        return before.again(
            vain if late and before.reason in ('', vain) else '')

    def _read(self, path: str, limit: int) -> bytes:
        """
        :raises LogDamaged: there is more that is to go, which the disk does
            not give just now; it would be removed with what has gone
        """
        read = reader.read_tail(path, limit, max_backups=self.max_backups)
        if read.failure is not None:
            raise exception.LogDamaged(
                f'{read.failure} Where one file alone cannot be mended, '
                f'remove it: what is newer follows the guest then')
        return read.data

    def _following(self, path: str, position: reader.Position) -> int | None:
        """Bytes of a log that follow a position; None: it is not there."""
        since = reader.read_from(
            path, position, 0, max_backups=self.max_backups)
        return None if since.missed is None else since.behind

    def _received(self, path: str, departure: outbox.Departure,
                  target: Target) -> str | None:
        """'' if the other host has it; why it refuses it; None otherwise."""
        self._fetch(path, target, logs.RECEIVED)
        return logs.received(outbox.fetched(path)).get(departure.id)

    def _is_there(self, path: str, target: Target) -> bool:
        """Whether what was copied still is where it was copied to.

        Not where its host has lost the end of it in a power cut.
        """
        if not self._fetch(path, target, f'{logs.MOVING}/{record.FILE}'):
            return False
        sent, found = (
            files.read(os.path.join(directory, record.FILE), record.MAX_SIZE)
            for directory in (os.path.join(path, logs.MOVING),
                              outbox.fetched(path)))
        return sent == found

    def _fetch(self, path: str, target: Target, name: str) -> bool:
        into = outbox.fetched(path)
        files.remove_tree(into)
        os.mkdir(into, 0o700)
        with contextlib.suppress(exception.LogError):
            self._copy(os.path.join(target.directory, name), f'{into}/',
                       target.address, receive=True)
            return True
        return False

    def _copy(self, source: str, destination: str, host: str,
              receive: bool = False) -> None:
        """:raises LogError: it cannot be copied, or takes too long"""
        deadline = _Deadline(self.timeout)
        try:
            self.copy(source, destination, host=host, receive=receive,
                      compression=False, on_execute=deadline.start,
                      on_completion=deadline.stop)
        except (processutils.ProcessExecutionError, OSError) as e:
            raise exception.LogError(
                f'the copy to {host} took longer than [virtlogd] '
                f'history_timeout = {self.timeout} s' if deadline.passed
                else f'the copy to {host}: {_reason(e)}') from e


def _reason(error: Exception) -> str:
    """Give what a command has said, in one line."""
    said = getattr(error, 'stderr', None) or str(error)
    return logs.printable(' '.join(said.split()), _LONGEST)


class _Deadline:
    """Ends the process of a copy that takes too long."""

    def __init__(self, seconds: float) -> None:
        self.passed = False
        self._seconds = seconds
        self._timer: threading.Timer

    def start(self, process: 'subprocess.Popen[bytes]') -> None:
        def end() -> None:
            self.passed = True
            # A signal that scp and rsync hand on to the ssh they started.
            process.terminate()

        self._timer = threading.Timer(self._seconds, end)
        self._timer.daemon = True
        self._timer.start()

    def stop(self, process: 'subprocess.Popen[bytes]') -> None:
        self._timer.cancel()
