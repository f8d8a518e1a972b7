# SPDX-License-Identifier: Apache-2.0
"""What guests wrote before comes to this host and leaves it with them.

Here is what nova's database says of it: where a guest is, whether it still
exists. How it is kept is in history/.
"""

import math
import os
import time
from collections.abc import Callable, Collection
from typing import Any

from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova.compute import task_states
from nova.virt.libvirt.utils import get_instance_path
from oslo_log import log as logging

from virtlogd_driver import exception
from virtlogd_driver.compute.consoles import Consoles
from virtlogd_driver.compute.deletions import Deletions
from virtlogd_driver.compute.nova_edge import DISKS
from virtlogd_driver.compute.options import Options
from virtlogd_driver.guest import char_device
from virtlogd_driver.history import (
    arrivals,
    carrier,
    delivery,
    files,
    history,
    inbox,
    logs,
    outbox,
)
from virtlogd_driver.node import hypervisor

LOG = logging.getLogger(__name__)

#: What the host's compute node says of itself, among its stats. nova writes
#: these anew with each update, and those of another driver are gone
#: (nova/compute/resource_tracker.py, _copy_resources).
STAT = 'console_log_virtlogd'
#: Seconds since a guest has come that a reader waits for its history.
READ_WAIT = 1.0
#: Seconds that a file system which has answered is not asked again before a
#: read: to ask takes fifty times as long as to read.
ASKED = 1.0


def look_up(uuid: str) -> Any:
    """Look up a guest in nova's database, also one that is deleted.

    That a database does not have it does not mean that it was deleted: it may
    be in another cell, or the wrong database was asked. Nothing is removed
    for that.

    :returns: nova's Instance; None: it is not there
    """
    # For this look alone: a deleted compute node is nowhere to send to.
    context = nova_context.get_admin_context(read_deleted='yes')
    try:
        return objects.Instance.get_by_uuid(context, uuid)
    except nova_exception.InstanceNotFound:
        return None


def stat_of(context: Any, host: str) -> str | None:
    """Look up what a host says of itself: 'True' where it can have both
    consoles, 'False' where it cannot, None where it has another driver.

    :param host: its name, as nova has it
    :raises ComputeHostNotFound: nova's, there is none
    """
    node = objects.ComputeNode.get_first_node_by_host_for_old_compat(
        context, host)
    found: str | None = (node.stats or {}).get(STAT)
    return found


def address_of(context: Any, host: str) -> str:
    """Look up the address that nova copies files to a host by.

    :param host: its name, which other hosts need not be able to resolve
    """
    node = objects.ComputeNode.get_first_node_by_host_for_old_compat(
        context, host)
    return str(node.host_ip or host)


class Histories:
    """What guests wrote before comes to this host and leaves it."""

    def __init__(self, options: Options, consoles: Consoles,
                 connection: Callable[[], Any],
                 kept: Callable[[], history.History]) -> None:
        """
        :param connection: gives the libvirt connection
        :param kept: gives what keeps histories, with today's options
        """
        self._options = options
        self._consoles = consoles
        self._connection = connection
        #: Gives what keeps histories, with today's options.
        self.kept = kept
        self.deletions = Deletions(options, kept)
        #: When the file system of instances_path has answered last, by
        #: time.monotonic.
        self._asked = -math.inf
        self._arrivals = arrivals.Arrivals()
        self._departures = carrier.Carrier(
            lambda path: self.kept().attempt(path, self._where))

    # On this host

    def place(self, uuid: str, directory: str,
              instance: Any = None) -> inbox.Place:
        """Say where the history of a guest is to go, as far as is known."""
        ports = {}
        if instance is not None:
            with history.errors_logged(instance):
                flavors = [instance.flavor, *[
                    getattr(instance, name)
                    for name in ('old_flavor', 'new_flavor')
                    if instance.obj_attr_is_set(name)
                    and getattr(instance, name) is not None]]
                # What it had before goes along, too.
                ports = {'ports': max(self._consoles.plan(
                    flavor, instance.image_meta).ports
                    for flavor in flavors)}
        in_use: dict[int, int] | None = {}
        with history.errors_logged(instance or history.guest(uuid)):
            if not hypervisor.runs(self._connection(), uuid):
                in_use = None
        return inbox.Place(
            directory, self._options.virtlogd.max_history_bytes,
            in_use=in_use, **ports)

    def recover(self, instance: Any) -> None:
        """Finish what was begun, as whatever touches a guest's logs does."""
        directory = get_instance_path(instance)
        with history.errors_logged(instance):
            if history.is_pending(directory):
                self.kept().recover(
                    instance, instance.uuid,
                    self.place(instance.uuid, directory, instance),
                    self._known_log_names(instance))

    def wait_before_reading(self, instance: Any) -> None:
        """Wait a moment for what has just begun to come.

        :raises LogError: the file system of instances_path does not answer:
            who reads would wait for ever, with all of nova-compute under
            eventlet
        """
        self._check_disk()
        directory = get_instance_path(instance)
        self._arrivals.wait(instance.uuid, READ_WAIT)
        # Where the logs are while something is done is its business.
        if instance.get('task_state', None) is None and (
                history.seems_pending(directory)):
            self.recover(instance)

    def _check_disk(self) -> None:
        """
        :raises LogError: as of wait_before_reading
        """
        now = time.monotonic()
        if now < self._asked + ASKED:
            return
        path = self._options.instances_path
        try:
            # What statvfs says of NFS is in no cache of this host.
            DISKS.ask(os.path.join(path, ''), os.statvfs, path)
        except exception.DiskStalled as e:
            raise exception.LogError(str(e)) from e
        except OSError as e:
            LOG.debug('%s: %s', path, e)   # the read says why
        self._asked = now

    # From another host

    def arrived(self, instance: Any, *, running: bool = False) -> None:
        """Put the history of a guest that is here in place as it comes.

        :param running: it ran while it came, so that its history comes later
        """
        self._consoles.changed(instance.uuid)
        directory = get_instance_path(instance)
        names = self._known_log_names(instance)
        if names is not None:
            self.kept().take_back(instance, instance.uuid, directory, names)
        self.kept().cut(instance, directory)
        self.receive_in_background(
            instance, instance.uuid, directory, names or [], may_come=running)

    def receive_in_background(
            self, instance: Any, uuid: str, directory: str,
            names: Collection[str], *, may_come: bool = False) -> None:
        """Put in place what comes, without waiting for it.

        :param names: of the logs that the guest's domain has
        :param may_come: something may come that is not promised
        """
        place = self.place(uuid, directory, instance)
        guest = instance or history.guest(uuid)
        with history.errors_logged(guest):
            self._arrivals.start(
                uuid, lambda ended: self.kept().wait_until_received(
                    guest, uuid, place, names, ended, may_come=may_come))

    def wait_for_history(self, instance: Any) -> None:
        """Wait for what is promised, before the log is taken elsewhere."""
        self.recover(instance)
        directory = get_instance_path(instance)
        names = self._log_names(instance)
        self.kept().wait_until_received(
            instance, instance.uuid,
            self.place(instance.uuid, directory, instance), names)

    def _log_names(self, instance: Any) -> list[str]:
        return self._known_log_names(instance) or []

    def _known_log_names(self, instance: Any) -> list[str] | None:
        """Names of the logs that a guest's domain has; None: not known."""
        with history.errors_logged(instance):
            try:
                return char_device.log_names(
                    self._consoles.serial_ports(instance))
            except nova_exception.InstanceNotFound:
                return []
        return None

    def gone(self, uuid: str) -> None:
        """Wait for nothing any more of a guest that is not here."""
        self._arrivals.forget(uuid)

    # To another host

    def prepare(self, instance: Any, departure: outbox.Departure,
                ) -> str | None:
        """Make the outbox of a guest that is about to leave.

        :returns: path of its outbox, if one could be made
        """
        return self.kept().prepare(
            instance, get_instance_path(instance), departure)

    def send(self, path: str) -> None:
        """Try until the other host has what is in an outbox."""
        self._departures.start(path)

    def try_now(self, path: str, target: delivery.Target) -> None:
        """Try once before nova goes on, then as of send."""
        delay = self.kept().attempt(path, lambda departure: target)
        if delay is not None:
            self._departures.start(path, delay)

    def departure(self, context: Any, instance: Any, host: str,
                  address: str | None = None,
                  stint: dict[int, int] | None = None,
                  directory: str | None = None) -> outbox.Departure:
        """Begin a departure.

        :param host: name of the destination; '': not known
        :param address: of the destination; None: as nova's database has it
        :param stint: as of outbox.Departure
        :param directory: path of the directory that its logs are in, where
            the generation that goes on there is not 1
        """
        there = get_instance_path(instance)
        if address is None:
            address = address_of(context.elevated(), host)
        generations = {} if directory is None else {
            port: logs.next_generation(directory, port)
            for port in logs.ports(directory)}
        return outbox.begin_departure(
            instance.uuid, address, host, there, generations, stint)

    def _where(self, departure: outbox.Departure
               ) -> delivery.Target | delivery.Elsewhere | None:
        """Look up where the history of a guest that has left goes now."""
        instance = look_up(departure.guest)
        if instance is None:
            return delivery.Elsewhere(
                "nova's database does not know the guest now")
        if instance.deleted:
            self._keep_deleted(instance)
            return None
        if instance.host is None:
            return delivery.Elsewhere('the guest is shelved, and on no host')
        here = instance.host == self._options.host
        moving = instance.task_state is not None
        reverting = instance.task_state == task_states.RESIZE_REVERTING
        if departure.stint is not None and reverting:
            return delivery.Target(
                departure.address, departure.directory, busy=True)
        if here and (not moving or departure.stint is not None):
            awaited = inbox.is_awaited(get_instance_path(instance),
                                       self._log_names(instance))
            return delivery.Elsewhere(
                '' if awaited else 'the guest is on this host again')
        if here or departure.host in ('', instance.host):
            return delivery.Target(
                departure.address, departure.directory, moving=moving)
        return delivery.Target(
            address_of(nova_context.get_admin_context(), instance.host),
            departure.directory,
            moved_on=True)

    # When nova-compute starts, and now and then

    def adopt(self, in_use: dict[str, list[str]]) -> None:
        """Go on with what was begun, as nova-compute starts.

        A guest that is evacuated has its directory elsewhere, or a shared one
        that is not for this host to touch.

        :param in_use: names of the logs that each guest's domain has, by UUID
        """
        with history.errors_logged(
                None, 'What guests wrote before is not in its place yet, and '
                'is looked for again when they are next read, started or '
                'moved'):
            for name in files.names(self._options.instances_path):
                with history.errors_logged(history.guest(name)):
                    inbox.discard_incomplete(inbox.Place(
                        self._directory(name),
                        self._options.virtlogd.max_history_bytes))
            for uuid in self._here(in_use):
                with history.errors_logged(history.guest(uuid)):
                    self._adopt(uuid, in_use[uuid])
        for adopt in (self._adopt_unsent, self._adopt_departures):
            with history.errors_logged(None, history.NOT_SENT):
                adopt()
        self.deletions.look_around(starting=True)

    def _adopt(self, uuid: str, names: list[str]) -> None:
        directory = self._directory(uuid)
        self.kept().recover(history.guest(uuid), uuid,
                            self.place(uuid, directory), names)
        if inbox.is_awaited(directory, names):
            self.receive_in_background(None, uuid, directory, names)

    def _here(self, in_use: dict[str, list[str]]) -> set[str]:
        if not in_use:
            return set()
        return in_use.keys() & set(objects.InstanceList.get_uuids_by_host(
            nova_context.get_admin_context(), self._options.host))

    def _directory(self, uuid: str) -> str:
        return os.path.join(self._options.instances_path, uuid)

    def _adopt_unsent(self) -> None:
        for directory in outbox.unsent(self._options.instances_path):
            guest = history.guest(os.path.basename(directory))
            with history.errors_logged(guest):
                found = self._left_for(look_up(guest['uuid']))
                if found is not None:
                    self.kept().prepare(guest, directory, found)

    def _adopt_departures(self) -> None:
        for path in outbox.paths(self._options.instances_path):
            uuid = outbox.guest_of(path)
            with history.errors_logged(history.guest(uuid), history.NOT_SENT):
                instance = look_up(uuid)
                if instance is not None and instance.deleted:
                    with history.errors_logged(
                            history.guest(uuid), history.NOT_KEPT):
                        try:
                            self._keep_deleted(instance)
                        except exception.LogError:
                            self.send(path)
                            raise
                        outbox.discard(path)
                elif instance is None and not outbox.is_filled(path):
                    # Where its logs are to go is not known: the next start
                    # looks again.
                    continue
                elif self._is_elsewhere(path, instance):
                    # A host that shares the storage may have it, and write.
                    if outbox.is_filled(path):
                        self.send(path)
                elif self.kept().resume(path, self._left_for(instance)):
                    self.send(path)

    def _is_elsewhere(self, path: str, instance: Any) -> bool:
        """Whether a guest is neither here nor where it left for."""
        departure = outbox.load(path)
        return departure is not None and instance is not None and (
            instance.host not in (None, self._options.host, departure.host)
            and departure.host != '')

    def _left_for(self, instance: Any) -> outbox.Departure | None:
        """Begin a departure to where a guest is; None: here, or not known."""
        if instance is None or instance.deleted or instance.host in (
                None, self._options.host):
            return None
        return self.departure(
            nova_context.get_admin_context(), instance, instance.host)

    def look_around(self) -> None:
        """Look now and then for what has come to guests that nobody waits
        for any more, and to guests that are deleted."""
        with history.errors_logged(
                None, 'What has come late of what guests wrote before is not '
                'in its place yet, and is looked for again in a minute'):
            self._look_around(self._options.instances_path)
        self.deletions.look_around()

    def _look_around(self, instances_path: str) -> None:
        for uuid in inbox.coming(instances_path):
            guest = history.guest(uuid)
            with history.errors_logged(guest):
                if hypervisor.runs(self._connection(), uuid):
                    self.kept().receive(
                        guest, uuid, self.place(uuid, self._directory(uuid)))
        for path in inbox.orphans(instances_path):
            uuid = os.path.basename(logs.instance_directory(path))
            with history.errors_logged(history.guest(uuid)):
                instance = look_up(uuid)
                if (instance is not None and instance.deleted
                        and path in inbox.orphans(instances_path)):
                    self._keep_deleted(instance)
                    LOG.info('%s is removed: guest %s is deleted', path, uuid)
                    files.remove_tree(path)

    def _keep_deleted(self, instance: Any) -> None:
        """Keep what is left here of a guest that was deleted elsewhere.

        :raises LogError: some is not: it stays, and is tried again
        """
        if not self.deletions.keep(
                instance, self._directory(instance.uuid),
                'deleted, on another host'):
            raise exception.LogError(
                f'guest {instance.uuid} was deleted, and what is left here of '
                f'its log cannot be kept yet')

    def stop(self) -> None:
        """Stop waiting and sending: nova-compute ends, the next goes on."""
        self._arrivals.stop()
        self._departures.stop()


