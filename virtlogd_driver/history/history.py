# SPDX-License-Identifier: Apache-2.0
"""A guest's history is kept whatever happens; compute/ calls what is here.

Nothing here fails: what cannot be done is said, and done by what comes next.
doc/source/contributor/history.rst has the states.
"""

import contextlib
import errno
import os
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from oslo_concurrency import processutils
from oslo_log import log as logging

from virtlogd_driver import exception
from virtlogd_driver.console_log import chain, generation, reader
from virtlogd_driver.guest import char_device
from virtlogd_driver.history import (
    deleted,
    exclusive,
    files,
    inbox,
    logs,
    outbox,
    record,
)
from virtlogd_driver.virtlogd import health

LOG = logging.getLogger(__name__)

#: Seconds for virtlogd to write out what a guest that has ended wrote last.
CLOSING = 2.0
#: Seconds between two looks at what comes, the first and the longest.
LOOK, LONGEST_LOOK = 0.05, 0.25
#: And once it is late.
LATE_LOOK = 5.0
#: Seconds until a copy that has failed is tried again, the first time, and
#: until it is asked whether one that was made has been put in place. Twice
#: as long from time to time.
RETRY, ASK, LONGEST = 5.0, 0.5, 3600.0
#: How often it is asked for what was copied until it is said that it has not
#: come: two minutes.
ASKED = 8
#: Seconds that another thread may take to rename a guest's logs.
LOCK_TIMEOUT = 30.0

#: Where logs end, by serial port; None: there is nothing in it.
LogEnds = dict[int, reader.Position | None]

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
class History:
    """Keeps what guests wrote, where nova takes their directories away."""

    #: Copies a file or directory to a host, or back: (source, destination,
    #: host=..., receive=...).
    copy: Copy
    #: The most bytes that follow a serial port.
    limit: int
    #: Seconds that a copy to another host may take, and that what is
    #: promised is waited for.
    timeout: float
    #: virtlogd's.
    socket_path: str
    #: No two threads rename the logs of one guest.
    guests: exclusive.Exclusive = field(
        default_factory=exclusive.Exclusive)
    #: virtlogd's, where known: see chain.snapshot.
    max_backups: int | None = None

    # On this host

    @contextlib.contextmanager
    def alone(self, uuid: str,
              seconds: float = LOCK_TIMEOUT) -> Iterator[None]:
        """Have the logs of a guest for oneself.

        :raises OSError: another thread has them for longer
        """
        with self.guests.guest(uuid, seconds) as got:
            if not got:
                raise OSError(errno.EAGAIN, 'another operation of the guest '
                                            'has its logs')
            yield

    def recover(self, instance: Any, uuid: str, place: inbox.Place,
                log_names: Collection[str] | None = None) -> None:
        """Finish what a crash, or a full disk, has left half done.

        Whatever touches the logs of a guest does so first. It takes some
        microseconds where there is nothing to be done.

        :param place: in_use is None where the guest does not run
        :param log_names: names of the logs that its domain has; None: not
            known
        """
        directory = place.directory
        if not is_pending(directory):
            return
        with errors_logged(instance), self.guests.guest(uuid, 0) as got:
            if not got:
                return
            if not logs.recover(directory, idle=place.in_use is None,
                                log_names=log_names):
                LOG.warning(
                    'The console log of guest %s was begun anew by another '
                    'driver: its user sees what was written since. What was '
                    'written before is in %s, and comes back when the guest '
                    'is next stopped and started, or moved', uuid,
                    logs.aside_directory(directory))
            self._receive(instance, place)

    def set_aside(self, instance: Any, directory: str) -> None:
        """Rename the logs out of a directory that nova is about to delete.

        The guest goes on here.

        The caller is alone with the logs, until it has put them back.
        """
        with errors_logged(instance):
            self._wait_until_closed(instance, directory)
        with errors_logged(instance):
            # What a crash has left is put together first.
            logs.recover(directory, idle=True)
        with errors_logged(instance):
            if logs.names(directory):
                logs.set_aside(directory)

    def put_back(self, instance: Any, directory: str) -> None:
        """Rename the logs back, after nova has deleted the directory."""
        with errors_logged(instance):
            if files.is_directory(logs.aside_directory(directory)):
                os.makedirs(directory, exist_ok=True)
                logs.recover(directory, idle=True)

    def take_along(self, instance: Any, uuid: str, here: str,
                   there: str) -> None:
        """Rename the logs of a guest that has ended to where it goes on."""
        with errors_logged(instance), self.alone(uuid):
            self._wait_until_closed(instance, here)
            logs.move(here, there)

    def leave_aside(self, instance: Any, uuid: str, here: str,
                    directory: str) -> None:
        """Put the logs where nova's own driver does not delete them.

        It begins a log of the same name anew. This driver puts them back
        (recover).

        :param here: path of the directory that they are in
        :param directory: path of the instance directory
        """
        with errors_logged(instance), self.alone(uuid):
            self._wait_until_closed(instance, here)
            if logs.names(here):
                files.make_directory(logs.aside_directory(directory))
                logs.move(here, logs.aside_directory(directory))

    def bring_back(self, instance: Any, uuid: str, directory: str) -> None:
        """Join what was written in a resize that is reverted with the rest.

        nova deletes the directory, and gives the one from before its name
        again.

        :param directory: path of the instance directory
        """
        with errors_logged(instance), self.alone(uuid):
            self._wait_until_closed(instance, directory)
            logs.recover(directory, idle=True)
            logs.move(directory, logs.resized(directory))

    def begin_next(self, instance: Any, directory: str) -> None:
        """Let a guest go on in new logs: another host may still write these.

        :param directory: path of its instance directory
        """
        with errors_logged(instance):
            logs.begin_next(directory)

    def cut(self, instance: Any, directory: str) -> None:
        """Keep what is older than the guest's logs within the bound."""
        with errors_logged(instance):
            logs.cut(directory, self.limit)

    def wait_until_closed(self, logs: list[str]) -> bool:
        """Wait until what guests that have ended wrote last is in their logs.

        :returns: whether virtlogd says that it writes none of them
        """
        return health.wait_until_closed(self.socket_path, logs, CLOSING)

    def _wait_until_closed(self, instance: Any, directory: str) -> None:
        """Wait until virtlogd has closed the logs, as far as it tells.

        Files may be renamed before: what is written goes where they go.
        """
        base = logs.instance_directory(directory)
        live = [os.path.join(base, name) for name in logs.newest(directory)]
        if live and not self.wait_until_closed(live):
            LOG.debug('virtlogd does not say that it has closed %s',
                      ', '.join(live), instance=instance)

    # To another host

    def prepare(self, instance: Any, directory: str,
                departure: outbox.Departure) -> str | None:
        """Make the outbox of a guest that is about to leave.

        :param directory: path of its instance directory here
        :returns: path of its outbox; None: it has none, and that is said
        """
        with errors_logged(instance):
            return outbox.make(directory, departure)
        return None

    def leave(self, instance: Any, uuid: str, path: str | None,
              directory: str) -> str | None:
        """Rename the logs of a guest that has left into its outbox.

        nova deletes the directory next.

        :param path: of its outbox; None: it could not be made
        :param directory: path of the directory that its logs are in
        :returns: path of its outbox
        """
        with errors_logged(instance), self.alone(uuid):
            self._wait_until_closed(instance, directory)
            with errors_logged(instance):
                if directory == logs.instance_directory(directory):
                    logs.recover(directory, idle=True)
            if logs.names(directory) or path is not None:
                return outbox.fill(path, directory)
        return path

    def confirm(self, instance: Any, uuid: str,
                directory: str) -> str | None:
        """Keep what another host lacks of a directory that nova deletes.

        :param directory: path of its instance directory
        :returns: path of the outbox that is still to be carried, if any
        """
        resized = logs.resized(directory)
        waiting = [path for path in outbox.paths(
            os.path.dirname(directory), uuid) if not outbox.is_filled(path)
            and outbox.load(path) is not None]
        if not waiting and outbox.is_delivered(resized):
            with errors_logged(instance):
                outbox.remove_delivered(resized)
            return None
        if not waiting and not logs.names(resized):
            return None
        return self.leave(instance, uuid, waiting[0] if waiting else None,
                          resized)

    def forget(self, instance: Any, path: str) -> None:
        """Rename back the logs of a guest that has stayed, or is back."""
        with errors_logged(instance):
            if files.is_directory(path) and not outbox.is_filled(path):
                outbox.discard(path)

    def take_back(self, instance: Any, uuid: str, directory: str,
                  log_names: Collection[str]) -> None:
        """The guest is here again, from a host with nova's own driver: its
        logs are where they were when it left.

        :param directory: path of its instance directory
        :param log_names: names of the logs that its domain has
        """
        with errors_logged(instance), self.alone(uuid):
            found = [path for path in outbox.paths(
                os.path.dirname(directory), uuid) if outbox.is_filled(path)]
            if len(found) != 1 or inbox.is_awaited(directory, log_names):
                return
            with files.locked(found[0], LOCK_TIMEOUT):
                if not outbox.is_filled(found[0]) or any(
                        files.size(os.path.join(directory, name))
                        for name in logs.names(directory)):
                    return
                for name in logs.names(directory):
                    os.unlink(os.path.join(directory, name))
                # What another log is in the way of stays, and is listed.
                if logs.move(found[0], directory):
                    outbox.discard(found[0])

    def keep_deleted(self, instance: Any, directory: str,
                     keeping: deleted.Keeping,
                     about: deleted.About) -> bool:
        """Keep the logs of a guest that is gone, before nova deletes them.

        :param directory: path of its instance directory
        :returns: False: not, or not all of them
        """
        with errors_logged(instance, NOT_KEPT), self.alone(
                os.path.basename(directory)):
            self._wait_until_closed(instance, directory)
            entry = deleted.keep(keeping, directory, about, time.time())
            if entry is not None:
                LOG.info('The console log of the guest is kept in %s for %d '
                         's: %s', entry.path, keeping.seconds, about.why,
                         instance=instance)
            return True
        return False

    def finish_deleted(self, directory: str,
                       keeping: deleted.Keeping) -> None:
        """Go on with what was to be kept when nova-compute was ended.

        :param directory: path of the instance directory
        """
        with errors_logged(None, NOT_KEPT), self.guests.guest(
                os.path.basename(directory), 0) as got:
            if got:
                # Or another host does so just now.
                with contextlib.suppress(BlockingIOError):
                    deleted.finish(keeping, directory, time.time())

    def remove(self, instance: Any, uuid: str, directory: str) -> None:
        """Remove what lies beside the directory of a deleted instance."""
        with errors_logged(instance):
            files.remove_tree(logs.aside_directory(directory))
        for path in outbox.paths(os.path.dirname(directory), uuid):
            with errors_logged(instance):
                outbox.discard(path)

    def resume(self, path: str, left: outbox.Departure | None) -> bool:
        """Take up an outbox again, after nova-compute was ended.

        :param path: of the outbox
        :param left: where the guest is, where that was not written down;
            None: it is on this host, or deleted
        :returns: whether there is something to be carried
        """
        with errors_logged(None):
            directory = path.partition(outbox.LEAVING)[0]
            if outbox.load(path) is None:
                outbox.adopt_old(path)
                if not outbox.is_filled(path):
                    outbox.discard(path)
                    return False
                if left is None:
                    return False
                outbox.address(path, left)
            resized = logs.resized(directory)
            if outbox.is_filled(path):
                # It was killed amid the renames.
                for here in (directory, resized):
                    if left and logs.names(here):
                        outbox.fill(path, here)
            elif not files.is_directory(resized):
                if not left:
                    outbox.discard(path)
                    return False
                logs.recover(directory, idle=True)
                outbox.fill(path, directory)
            return True
        return True

    def attempt(self, path: str, where: Where,
                patience: float = 0.0) -> float | None:
        """Try once to let a host have what waits for it.

        :param path: of the outbox
        :param patience: seconds to wait for another process that tries just
            now
        :returns: seconds until the next time; None: it is done
        """
        try:
            with files.locked(path, patience):
                return self._attempt(path, where)
        except FileNotFoundError:
            return None
        except OSError as e:
            LOG.debug('%s: %s', path, e)
            return RETRY if files.is_directory(path) else None

    def _attempt(self, path: str, where: Where) -> float | None:
        departure, before = outbox.load(path), outbox.load_state(path)
        if departure is None:
            outbox.save_state(path, replace(before, attempts=(
                before.attempts + 1)))
            return LONGEST
        if logs.received(path.partition(outbox.LEAVING)[0]).get(
                departure.id) == '':
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
                after = outbox.State(
                    before.attempts + 1, before.copied, target.reason)
            else:
                try:
                    after = self._carry(path, departure, before, target)
                except exception.LogError:
                    if not before.copied or where(departure) == target:
                        raise
                    # What had been there has left meanwhile, with the guest.
                    after = replace(before, attempts=before.attempts + 1)
        except (exception.VirtlogdDriverError, OSError,
                record.InvalidRecord) as e:
            after = outbox.State(before.attempts + 1, before.copied, str(e))
        except Exception as e:
            LOG.exception(
                'What guest %s wrote before it left this host could not be '
                'sent, for a reason that is not foreseen. It is kept in %s, '
                'and the copy is tried again', departure.guest, path)
            after = outbox.State(before.attempts + 1, before.copied, repr(e))
        if after is None:
            if before.reason:
                LOG.info('What guest %s wrote before it left has followed '
                         'it to %s', departure.guest,
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
        attempts = before.attempts + 1
        if before != outbox.State() or target.moved_on or target.busy:
            refused = self._received(path, departure, target)
            if refused == '':
                outbox.finish(path, departure)
                return None
            if refused is not None:
                return outbox.State(
                    attempts, True,
                    f'{target.address} has refused it: {refused}', True)
            if target.busy:
                return outbox.State(attempts, before.copied, before.reason)
            if target.moved_on:
                # What was copied may still be on its way from there.
                return outbox.State(
                    attempts, before.copied, before.reason
                    if before.copied and attempts < ASKED else
                    f'the guest went on to {target.address} before it had '
                    f'followed it')
            if before.copied:
                if self._is_there(path, target):
                    return outbox.State(
                        attempts, True,
                        before.reason if attempts < ASKED else (
                            f'it was copied to {target.address}, which has '
                            f'not put it in place: it may have another '
                            f'driver'))
                # It may have been put in place between the two questions.
                if self._received(path, departure, target) == '':
                    outbox.finish(path, departure)
                    return None
                if target.moving:
                    return outbox.State(attempts, True, before.reason)
        staged = outbox.stage(
            path, self.limit,
            lambda log, limit: reader.read_tail(
                log, limit, max_backups=self.max_backups).data,
            self._following)
        self._copy(staged, f'{target.directory}/', target.address)
        return outbox.State(0 if not before.copied else attempts, True)

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

    # From another host

    def receive(self, instance: Any, uuid: str,
                place: inbox.Place) -> None:
        """Put in place what has come."""
        with errors_logged(instance), self.alone(uuid):
            self._receive(instance, place)

    def _receive(self, instance: Any, place: inbox.Place) -> None:
        if not inbox.is_coming(place.directory):
            return
        detached = os.path.join(
            place.directory, generation.history_name(0, 0))
        known = files.size(detached)
        for reason in inbox.receive(place):
            LOG.warning('What another host has sent of what the guest wrote '
                        'there is not put in place, and its user does not '
                        'see it: %s. That host keeps it, and says so',
                        reason, instance=instance)
        if files.size(detached) != known:
            LOG.warning('The console log of the guest was begun anew by '
                        'another driver: its user sees what was written '
                        'since. What was written before is in %s; see '
                        '"virtlogd-console export"', detached,
                        instance=instance)

    def wait_until_received(
            self, instance: Any, uuid: str, place: inbox.Place,
            log_names: Collection[str],
            ended: threading.Event | None = None, *,
            may_come: bool = False) -> None:
        """Wait for what is promised to the guest, before it goes on.

        :param log_names: names of the logs that its domain has
        :param ended: set as it is waited no more, which nobody waits for:
            there is no bound then
        :param may_come: something may follow that is not promised, of a host
            whose guests have no log
        """
        deadline = time.monotonic() + self.timeout
        pause, longest = LOOK, LONGEST_LOOK
        with errors_logged(instance):
            while inbox.is_awaited(place.directory, log_names) or (
                    may_come and time.monotonic() < deadline):
                if inbox.is_coming(place.directory) and inbox.is_complete(
                        place):
                    may_come = False
                    self.receive(instance, uuid, place)
                    if inbox.is_coming(place.directory):
                        # It cannot be put in place, as was said.
                        return
                    continue
                if time.monotonic() > deadline:
                    if ended is None:
                        inbox.give_up(place.directory)
                        return
                    longest = LATE_LOOK
                if ended is None:
                    time.sleep(pause)
                elif ended.wait(pause):
                    return
                pause = min(longest, pause * 1.2)


def _reason(error: Exception) -> str:
    """Give what a command has said, in one line."""
    said = getattr(error, 'stderr', None) or str(error)
    return ' '.join(said.split())


class _Arrival:
    """A guest has come."""

    def __init__(self) -> None:
        #: By time.monotonic.
        self.since = time.monotonic()
        #: Set when nobody is to wait for its history any more.
        self.ended = threading.Event()
        #: Set when its history is in place, or does not come.
        self.done = threading.Event()


class Arrivals:
    """Guests have come, and what they wrote before comes after them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._guests: dict[str, _Arrival] = {}

    def start(self, uuid: str,
              receive: Callable[[threading.Event], None]) -> None:
        """Put in place what comes, in a thread.

        :param receive: does it, until the event that it is given is set
        """
        with self._lock:
            if uuid in self._guests:
                return
            arrival = self._guests[uuid] = _Arrival()

        def run() -> None:
            try:
                receive(arrival.ended)
            finally:
                arrival.done.set()
                with self._lock:
                    if self._guests.get(uuid) is arrival:
                        del self._guests[uuid]

        threading.Thread(target=run, name='virtlogd-arrival',
                         daemon=True).start()

    def forget(self, uuid: str) -> None:
        """The guest has gone, or another thread waits for its history."""
        with self._lock:
            arrival = self._guests.pop(uuid, None)
        if arrival is not None:
            arrival.ended.set()

    def stop(self) -> None:
        """nova-compute ends; the next one goes on."""
        for uuid in list(self._guests):
            self.forget(uuid)

    def wait(self, uuid: str, seconds: float) -> None:
        """Wait until what comes for a guest is in place, or does not come.

        :param seconds: since the guest has come, at most
        """
        with self._lock:
            arrival = self._guests.get(uuid)
        if arrival is not None:
            arrival.done.wait(
                max(0.0, arrival.since + seconds - time.monotonic()))


class _Deadline:
    """Ends the process of a copy that takes too long."""

    def __init__(self, seconds: float) -> None:
        self.passed = False
        self._seconds = seconds
        self._timer: threading.Timer | None = None

    def start(self, process: 'subprocess.Popen[bytes]') -> None:
        def end() -> None:
            self.passed = True
            # A signal that scp and rsync hand on to the ssh they started.
            process.terminate()

        self._timer = threading.Timer(self._seconds, end)
        self._timer.daemon = True
        self._timer.start()

    def stop(self, process: 'subprocess.Popen[bytes]') -> None:
        assert self._timer is not None
        self._timer.cancel()


def is_pending(directory: str) -> bool:
    """Whether there is something for recover to look at.

    :param directory: path of an instance directory
    """
    return inbox.is_coming(directory) or any(
        files.is_directory(beside(directory)) for beside in (
            logs.aside_directory, logs.resized, logs.deleted_directory))


_LOST = ('What the guest wrote before is not in its place yet, so its console '
         'log begins later than it should; it is kept, and looked for again '
         'when the guest is next read, started or moved')
#: Said where the log of a deleted guest is lost.
NOT_KEPT = ('The console log of a guest whose files nova deletes is not kept '
            'as [virtlogd] keep_deleted says, or not all of it. See to the '
            'file system of instances_path')


@contextlib.contextmanager
def errors_logged(instance: Any, failure: str = _LOST) -> Iterator[None]:
    """Log what fails in the block and go on: no log is worth a guest.

    :param instance: nova's Instance that it is about; None: it is in failure
    :param failure: what has happened and what it means; the reason follows
    """
    try:
        yield
    except (exception.VirtlogdDriverError, OSError) as e:
        LOG.warning('%s: %s', failure, e, instance=instance)
    except Exception:
        LOG.exception('%s', failure, instance=instance)


def begin_logs(log_files: list[str]) -> None:
    """Mark where each log begins, before virtlogd opens it.

    :raises OSError: one cannot be made; then none is
    """
    with contextlib.ExitStack() as begun:
        for log_file in log_files:
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                chain.begin(log_file)
                begun.callback(os.unlink, log_file)
        begun.pop_all()


def guest_logs(domain_xml: str) -> dict[int, str]:
    """Path of the log of each serial port, if this driver has named it."""
    found = {}
    for device in char_device.parse(domain_xml):
        file = generation.parse(os.path.basename(device.log_file or ''))
        if device.log_file is not None and file is not None:
            found[file.port] = device.log_file
    return found


def ends(logs: dict[int, str]) -> LogEnds:
    """Where logs end now, by serial port; None: there is nothing in it."""
    found: LogEnds = {}
    for port, path in logs.items():
        found[port] = None
        with contextlib.suppress(exception.LogNotFound):
            last = reader.read_tail(path, 1)
            found[port] = last.position if last.data else None
    return found
