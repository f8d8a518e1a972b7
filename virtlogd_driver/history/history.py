# SPDX-License-Identifier: Apache-2.0
"""A guest's history is kept whatever happens; compute/ calls what is here.

Nothing here fails: what cannot be done is said, and done by what comes next.
doc/source/contributor/history.rst has the states.
"""

import contextlib
import errno
import os
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from oslo_log import log as logging

from virtlogd_driver import exception
from virtlogd_driver.console_log import chain, generation, reader
from virtlogd_driver.guest import char_device
from virtlogd_driver.history import (
    deleted,
    delivery,
    exclusive,
    files,
    inbox,
    logs,
    outbox,
)
from virtlogd_driver.virtlogd import health

LOG = logging.getLogger(__name__)

#: Seconds for virtlogd to write out what a guest that has ended wrote last.
CLOSING = 2.0
#: Seconds between two looks at what comes, the first ones.
LOOK = 0.05
#: At most.
LONGEST_LOOK = 0.25
#: And once it is late.
LATE_LOOK = 5.0
#: Seconds that another thread may take to rename a guest's logs.
LOCK_TIMEOUT = 30.0

#: Where logs end, by serial port; None: there is nothing in it.
LogEnds = dict[int, reader.Position | None]


@dataclass(frozen=True, slots=True)
class History:
    """Keeps what guests wrote, where nova takes their directories away."""

    #: As of Delivery.
    copy: delivery.Copy
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

    @contextlib.contextmanager
    def before_deletion(self, instance: Any, uuid: str) -> Iterator[None]:
        """Have the logs of a guest for oneself, as nova deletes what is left.

        Where another thread has them for longer it is not waited for: each
        file has one name at each time, and none would be left afterwards.
        """
        with contextlib.ExitStack() as alone:
            with errors_logged(instance):
                alone.enter_context(self.alone(uuid))
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
        with contextlib.ExitStack() as alone:
            alone.enter_context(errors_logged(instance))
            if not is_pending(directory):
                return
            if not alone.enter_context(self.guests.guest(uuid, 0)):
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
            older = logs.aside_directory(directory)
            if files.is_directory(older):
                os.makedirs(directory, exist_ok=True)
                logs.recover(directory, idle=True)

    def take_along(self, instance: Any, uuid: str, here: str,
                   there: str) -> None:
        """Rename the logs of a guest that has ended to where it goes on."""
        with errors_logged(instance), self.alone(uuid):
            self._wait_until_closed(instance, here)
            logs.move(here, there)

    def leave_aside(self, instance: Any, uuid: str, here: str,
                    directory: str, log_names: Collection[str] = ()) -> None:
        """Put the logs where nova's own driver does not delete them.

        It begins a log of the same name anew. This driver puts them back
        (recover).

        :param here: path of the directory that they are in
        :param directory: path of the instance directory
        :param log_names: names of the logs that the guest writes there by now
        """
        with errors_logged(instance), self.before_deletion(instance, uuid):
            self._wait_until_closed(instance, here)
            there = logs.aside_directory(directory)
            if logs.names(here):
                files.make_directory(there)
                logs.move(here, there, logs.in_use(log_names))

    def bring_back(self, instance: Any, uuid: str, directory: str) -> None:
        """Join what was written in a resize that is reverted with the rest.

        nova deletes the directory, and gives the one from before its name
        again.

        :param directory: path of the instance directory
        """
        with errors_logged(instance), self.before_deletion(instance, uuid):
            self._wait_until_closed(instance, directory)
            with errors_logged(instance):
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
        live: list[str] = []
        with errors_logged(instance):
            live = [os.path.join(base, name)
                    for name in logs.newest(directory)]
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
        with errors_logged(instance), self.before_deletion(instance, uuid):
            self._wait_until_closed(instance, directory)
            with errors_logged(instance):
                logs.recover(directory, idle=True)
            if path is not None or logs.names(directory):
                return outbox.fill(path, directory)
        return path

    def confirm(self, instance: Any, uuid: str,
                directory: str) -> str | None:
        """Keep what another host lacks of a directory that nova deletes.

        :param directory: path of its instance directory
        :returns: path of the outbox that is still to be carried, if any
        """
        resized = logs.resized(directory)
        path = next((path for path in outbox.paths(
            os.path.dirname(directory), uuid)
            if not outbox.is_filled(path)), None)
        if path is None and outbox.is_delivered(resized):
            with errors_logged(instance):
                outbox.remove_delivered(resized)
            return None
        return self.leave(instance, uuid, path, resized)

    def forget(self, instance: Any, path: str) -> None:
        """Remove the outbox of a guest that has stayed, or is back.

        :param path: of the outbox
        """
        # Who carries it just now finds out as much, and removes it.
        with (errors_logged(instance),
              contextlib.suppress(BlockingIOError, FileNotFoundError),
              files.locked(path, 0)):
            if not outbox.is_filled(path):
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
            (path,) = found
            with files.locked(path, LOCK_TIMEOUT):
                # virtlogd has open what the domain names, also if it is empty.
                if not outbox.is_filled(path) or any(
                        name in log_names
                        or files.size(os.path.join(directory, name))
                        for name in logs.names(directory)):
                    return
                for name in logs.names(directory):
                    os.unlink(os.path.join(directory, name))
                # What another log is in the way of stays, and is listed.
                if logs.move(path, directory):
                    outbox.discard(path)

    def keep_deleted(self, instance: Any, directory: str,
                     keeping: deleted.Keeping,
                     about: deleted.About) -> bool:
        """Keep the logs of a guest that is gone, before nova deletes them.

        :param directory: path of its instance directory
        :returns: False: not, or not all of them
        """
        with errors_logged(instance, NOT_KEPT), self.before_deletion(
                instance, os.path.basename(directory)):
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
        uuid = os.path.basename(directory)
        with errors_logged(guest(uuid), NOT_KEPT), self.guests.guest(
                uuid, 0) as got:
            if got:
                # Or another host does so just now.
                with contextlib.suppress(BlockingIOError):
                    deleted.finish(keeping, directory, time.time())

    def remove(self, instance: Any, uuid: str, directory: str) -> None:
        """Remove what lies beside the directory of a deleted instance."""
        with errors_logged(instance):
            files.remove_tree(logs.aside_directory(directory))
        with errors_logged(instance):
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
        instance = guest(outbox.guest_of(path))
        with errors_logged(instance, NOT_SENT):
            directory = outbox.directory_of(path)
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
                for here in (directory, resized) if left else ():
                    with errors_logged(instance):
                        outbox.fill(path, here)
            elif not files.is_directory(resized):
                if not left:
                    outbox.discard(path)
                    return False
                with errors_logged(instance):
                    logs.recover(directory, idle=True)
                outbox.fill(path, directory)
            return True
        # Its logs may not be in it: to send it would be to do without them.
        return False

    def attempt(self, path: str, where: delivery.Where) -> float | None:
        """Try once to let a host have what waits for it, as of Delivery."""
        return delivery.Delivery(
            self.copy, self.limit, self.timeout, self.max_backups).attempt(
                path, where)

    # From another host

    def receive(self, instance: Any, uuid: str,
                place: inbox.Place) -> None:
        """Put in place what has come."""
        with errors_logged(instance), self.alone(uuid):
            self._receive(instance, place)

    def _receive(self, instance: Any, place: inbox.Place) -> None:
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
                if inbox.is_complete(place):
                    may_come = False
                    self.receive(instance, uuid, place)
                    if inbox.is_complete(place):
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


def is_pending(directory: str) -> bool:
    """Whether there is something for recover to look at.

    :param directory: path of an instance directory
    :raises OSError: its disk does not tell
    """
    return any(map(files.is_directory, _pending(directory)))


def seems_pending(directory: str) -> bool:
    """Whether is_pending may say so. Each read of a log asks."""
    return any(map(files.may_exist, _pending(directory)))


def _pending(directory: str) -> list[str]:
    return [*inbox.paths(directory), *logs.beside(directory)]


_LOST = ('What the guest wrote before is not in its place yet, so its console '
         'log begins later than it should; it is kept, and looked for again '
         'when the guest is next read, started or moved')
#: Said where what waits for another host cannot be looked at.
NOT_SENT = ('What guests that have left wrote here is not sent after them '
            'until nova-compute starts again; "virtlogd-console history" '
            'shows it')
#: Said where the log of a deleted guest is lost.
NOT_KEPT = ('The console log of a guest whose files nova deletes is not kept '
            'as [virtlogd] keep_deleted says, or not all of it. See to the '
            'file system of instances_path')


def guest(uuid: str) -> dict[str, str]:
    """What a message needs of a guest whose Instance is not at hand."""
    return {'uuid': uuid}


@contextlib.contextmanager
def errors_logged(instance: Any, failure: str = _LOST) -> Iterator[None]:
    """Log what fails in the block and go on: no log is worth a guest.

    :param instance: nova's Instance that it is about, or as of guest; None: it
        is in failure
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
    return {
        file.port: device.log_file
        for device in char_device.parse(domain_xml)
        if device.log_file is not None and (file := generation.parse(
            os.path.basename(device.log_file))) is not None}


def ends(logs: dict[int, str]) -> LogEnds:
    """Where logs end now, by serial port; None: there is nothing in it."""
    found: LogEnds = {}
    for port, path in logs.items():
        found[port] = None
        with contextlib.suppress(exception.LogNotFound):
            last = reader.read_tail(path, 1)
            found[port] = last.position if last.data else None
    return found
