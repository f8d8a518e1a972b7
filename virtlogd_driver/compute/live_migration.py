# SPDX-License-Identifier: Apache-2.0
"""Source and destination act in a live migration, in nova's order of calls.

On the destination a guest begins a new log, so that no two virtlogd ever
write one file. What it wrote before is renamed out of nova's way at the source
once the guest has left, and follows it without holding up the migration.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from nova.console import serial as serial_console
from nova.virt.libvirt import utils as libvirt_utils
from oslo_log import log as logging

from virtlogd_driver import exception
from virtlogd_driver.compute.consoles import Consoles, beginning
from virtlogd_driver.compute.histories import STAT, Histories, stat_of
from virtlogd_driver.compute.nova_edge import DISKS, field, nova_errors
from virtlogd_driver.compute.options import Options
from virtlogd_driver.console_log import generation
from virtlogd_driver.guest import char_device, migration
from virtlogd_driver.history import history, logs
from virtlogd_driver.virtlogd import health

LOG = logging.getLogger(__name__)

#: What placement says of a host that runs this driver and can have both
#: consoles at once. It stays there after going back to nova's own driver.
TRAIT = 'CUSTOM_CONSOLE_LOG_VIRTLOGD'
#: Where nova's own search for TCP ports finds none that is in use.
NOBODYS_ADDRESS = '127.255.255.254'


class Destination:
    """This host is the one that a guest comes to."""

    def __init__(self, options: Options, consoles: Consoles) -> None:
        self._options = options
        self._consoles = consoles

    def publish(self, provider_tree: Any, nodename: str) -> None:
        """Let other hosts, and flavors, know what this one can do.

        :param provider_tree: nova's ProviderTree
        :raises HypervisorUnavailable: nova's, libvirt does not answer
        """
        with nova_errors():
            capable = self._consoles.capability().capable
        if capable:
            provider_tree.add_traits(nodename, TRAIT)
        else:
            provider_tree.remove_traits(nodename, TRAIT)

    def describe(self, resources: dict[str, Any]) -> dict[str, Any]:
        """Let other hosts know what this one can do, while it can.

        :param resources: nova's, of get_available_resource
        :returns: the same, with what this host can do among its stats
        :raises HypervisorUnavailable: nova's, libvirt does not answer
        """
        with nova_errors():
            resources.setdefault('stats', {})[STAT] = str(
                self._consoles.capability().capable)
        return resources

    def check(self, instance: Any) -> None:
        """Refuse a guest that could not have its console here.

        :raises VirtlogdDriverError: what is missing, and the remedy
        """
        wanted = self._consoles.plan(instance.flavor, instance.image_meta)
        if self._options.serial_console:
            self._consoles.ports.check(
                instance.uuid, self._options.proxyclient_address,
                wanted.ports)
        instances_path = self._options.instances_path
        path = os.path.join(instances_path, 'console.log')
        room = wanted.ports * self._options.virtlogd.max_history_bytes
        # Where no thread can be started, to look, that refuses nothing.
        with contextlib.suppress(RuntimeError):
            if not DISKS.ask(path, os.access, instances_path,
                             os.W_OK | os.X_OK):
                raise exception.LogRefused(
                    f'{instances_path} is not there, or nova-compute may not '
                    f'write to it. Create or mount it, or correct '
                    f'instances_path.')
        if wanted.logged:
            health.check_ready(self._options.virtlogd.virtlogd_socket, [path],
                               self._options.virtlogd.health_timeout,
                               disks=DISKS)
        free = health.free_space(path, DISKS)
        if free is not None and free < room:
            raise exception.LogDiskFull(
                f'There are {free} bytes free in {instances_path}, and what '
                f'the guest wrote may take {room}. Free some space, or lower '
                f'[virtlogd] max_history_bytes.')

    @contextlib.contextmanager
    def without_novas_ports(self, migrate_data: Any) -> Iterator[str | None]:
        """Keep nova from reserving TCP ports while it prepares.

        It searches for them at an address that nobody has, and what it finds
        is given back.

        Its search knows IPv4 alone, and not which guest holds which port.

        :param migrate_data: nova's LibvirtLiveMigrateData
        :returns: the address that the guest's viewers connect to; None: it
            is to have no ports. Where the ports themselves listen is in
            migrate_data afterwards
        """
        address = field(migrate_data, 'serial_listen_addr')
        if address is not None:
            migrate_data.serial_listen_addr = NOBODYS_ADDRESS
        try:
            yield address
        finally:
            for port in field(migrate_data, 'serial_listen_ports') or ():
                serial_console.release_port(NOBODYS_ADDRESS, port)
            if address is not None:
                migrate_data.serial_listen_addr = (
                    self._options.guest_address)

    def prepare(self, instance: Any, migrate_data: Any,
                address: str | None) -> None:
        """Reserve the TCP ports and begin the logs of a guest that comes.

        :param migrate_data: nova's, with the ports in it afterwards
        :param address: that its viewers connect to; None: it is to have no
            ports
        :raises NovaException: it cannot come
        """
        try:
            with nova_errors(instance):
                self._prepare(instance, migrate_data, address)
        except Exception:
            # nova does not roll back what has not begun.
            self._consoles.ports.release(instance.uuid)
            raise

    def _prepare(self, instance: Any, migrate_data: Any,
                 address: str | None) -> None:
        wanted = self._consoles.plan(instance.flavor, instance.image_meta)
        if address is not None and self._options.serial_console:
            migrate_data.serial_listen_ports = list(
                self._consoles.ports.acquire(
                    instance.uuid, address, wanted.ports))
        if wanted.backend != 'tcp' or wanted.logged or address is None:
            directory = libvirt_utils.get_instance_path_at_destination(
                instance, migrate_data
                if field(migrate_data, 'instance_relative_path') else None)
            with beginning(directory):
                history.begin_logs([
                    os.path.join(directory, generation.live_name(
                        port, logs.next_generation(directory, port)))
                    for port in range(wanted.ports)])


@dataclass(frozen=True, slots=True)
class _Departure:
    #: nova's.
    instance: Any
    #: Path of its outbox; None: it has none.
    path: str | None
    #: Both hosts have one instance directory.
    shared: bool
    #: The other host has this driver.
    ours: bool
    #: Names of the logs that the guest writes there.
    log_names: tuple[str, ...] = ()


class Source:
    """This host is the one that a guest leaves."""

    def __init__(self, options: Options, consoles: Consoles,
                 histories: Histories) -> None:
        self._options = options
        self._consoles = consoles
        self._histories = histories
        # By UUID, of guests that are about to leave.
        self._departures: dict[str, _Departure] = {}

    def prepare(self, context: Any, instance: Any, dest: str,
                migrate_data: Any) -> Callable[[str], str]:
        """Decide how the guest's XML is to be rewritten.

        Called before its memory is copied.

        :param dest: name of the destination, as nova has it
        :param migrate_data: nova's LibvirtLiveMigrateData
        :returns: gives the domain XML for the destination; NovaException
            where that cannot be
        """
        directory = libvirt_utils.get_instance_path(instance)
        shared = bool(field(migrate_data, 'is_shared_instance_path'))
        stat = self._stat_of(context, dest)
        path = None
        if not shared:
            with history.errors_logged(instance):
                path = self._histories.prepare(
                    instance, self._histories.departure(
                        context, instance, dest, field(
                            migrate_data, 'target_connect_addr')))
        departure = self._departures[instance.uuid] = _Departure(
            instance, path, shared, stat is not None)
        destination = migration.Destination(
            capable=stat == str(True),
            address=field(migrate_data, 'serial_listen_addr'),
            tcp_ports=field(migrate_data, 'serial_listen_ports') or ())

        def rewrite(domain_xml: str) -> str:
            with nova_errors(instance):
                there = migration.for_destination(
                    domain_xml, destination, lambda port, here:
                    logs.next_log(directory, port, here, shared),
                    self._options.virtlogd.upgrade_on_migration)
                self._departures[instance.uuid] = dataclasses.replace(
                    departure, log_names=tuple(char_device.log_names(
                        char_device.parse(there))))
            return there

        return rewrite

    @staticmethod
    def _stat_of(context: Any, dest: str) -> str | None:
        """Look up what another host says of itself.

        Its trait would not tell: it stays where the driver does not.
        """
        try:
            return stat_of(context, dest)
        except Exception:
            # Whatever it is, it must not stop the guest from moving.
            LOG.exception('What host %s can do is not known: the guest moves '
                          'without its log', dest)
            return None

    def left(self, uuid: str) -> None:
        """Send what a guest wrote after it: it runs on its destination.

        nova may delete the instance directory afterwards. To say so twice
        does no harm: the second one waits for the first.
        """
        kept = self._histories.kept()
        guest = history.guest(uuid)
        with history.errors_logged(guest), kept.before_deletion(guest, uuid):
            departure = self._departures.pop(uuid, None)
            if departure is None:
                return
            directory = libvirt_utils.get_instance_path(departure.instance)
            if departure.shared:
                if not departure.ours:
                    kept.leave_aside(
                        departure.instance, uuid, directory, directory,
                        departure.log_names)
                return
            path = kept.leave(
                departure.instance, uuid, departure.path, directory)
            if path is not None:
                self._histories.send(path)

    def undefined(self, uuid: str) -> None:
        """Release the ports of a guest that libvirt itself has undefined."""
        self._consoles.undefined(uuid)

    def stayed(self, instance: Any, migrate_data: Any) -> None:
        """Undo what was begun for a migration that has failed."""
        self.forget(instance.uuid)
        if field(migrate_data, 'is_shared_instance_path'):
            with history.errors_logged(instance):
                logs.remove_begun(
                    libvirt_utils.get_instance_path(instance),
                    logs.in_use(char_device.log_names(
                        self._consoles.serial_ports(instance))))

    def forget(self, uuid: str) -> None:
        """Forget the departure of a guest that has stayed, or is gone."""
        departure = self._departures.pop(uuid, None)
        if departure is not None and departure.path is not None:
            self._histories.kept().forget(departure.instance, departure.path)
