# SPDX-License-Identifier: Apache-2.0
"""Both ends of a live migration, in the order in which nova calls them.

On the destination a guest begins a new log, so that no two virtlogd ever
write one file. What it wrote before is packed at the source once the guest has
left, and follows it without holding up the migration.
"""

import contextlib
import os
from collections.abc import Callable, Collection, Iterator
from typing import Any

from nova import objects
from nova.console import serial as serial_console
from nova.virt.libvirt import utils as libvirt_utils
from oslo_log import log as logging

from virtlogd_driver import exception
from virtlogd_driver.compute.consoles import Consoles
from virtlogd_driver.compute.nova_edge import field, nova_errors
from virtlogd_driver.compute.options import Options
from virtlogd_driver.console_log import generation
from virtlogd_driver.guest import char_device, migration
from virtlogd_driver.history import history, transfer, transit
from virtlogd_driver.virtlogd import health

LOG = logging.getLogger(__name__)

#: What placement says of a host that runs this driver and can have both
#: consoles at once. It stays there after going back to nova's own driver.
TRAIT = 'CUSTOM_CONSOLE_LOG_VIRTLOGD'
#: What the host's compute node says of itself, among its stats. nova writes
#: these anew with each update, and those of another driver are gone
#: (nova/compute/resource_tracker.py, _copy_resources).
STAT = 'console_log_virtlogd'
#: Seconds since a guest has come that a reader waits for its history.
READ_WAIT = 1.0
#: Where nova's own search for TCP ports finds none that is in use.
NOBODYS_ADDRESS = '127.255.255.254'


class Destination:
    """This host as the one that a guest comes to."""

    def __init__(self, options: Options, consoles: Consoles,
                 carrier: Callable[[], history.History]) -> None:
        """
        :param carrier: gives what carries histories, with today's options
        """
        self._options = options
        self._consoles = consoles
        self._carrier = carrier
        self._arrivals = transit.Arrivals()

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
        """Before anything is done: can the guest have its console here?

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
        if not os.access(instances_path, os.W_OK | os.X_OK):
            raise exception.LogRefused(
                f'{instances_path} is not there, or nova-compute may not '
                f'write to it. Create or mount it, or correct '
                f'instances_path.')
        if wanted.logged:
            health.check_ready(self._options.virtlogd.virtlogd_socket, [path],
                               self._options.virtlogd.health_timeout)
        free = health.free_space(path)
        if free is not None and free < room:
            raise exception.LogDiskFull(
                f'There are {free} bytes free in {instances_path}, and what '
                f'the guest wrote may take {room}. Free some space, or lower '
                f'[virtlogd] max_history_bytes.')

    @contextlib.contextmanager
    def without_novas_ports(self, migrate_data: Any) -> Iterator[str | None]:
        """While nova prepares: it searches for TCP ports elsewhere, and what
        it finds is given back.

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
        if not field(migrate_data, 'is_shared_instance_path'):
            self._arrivals.expect(instance.uuid)

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
            history.begin_logs([
                os.path.join(directory, generation.live_name(
                    port, transfer.next_generation(directory, port)))
                for port in range(wanted.ports)])

    def arrived(self, instance: Any) -> None:
        """The guest runs here: its history is put in place as it comes."""
        self._consoles.changed(instance.uuid)
        self._receive(instance.uuid, instance,
                      libvirt_utils.get_instance_path(instance))

    def _receive(self, uuid: str, instance: Any, directory: str,
                 in_use: Collection[str] = ()) -> None:
        self._arrivals.start(
            uuid, lambda: transfer.is_whole(directory),
            lambda: self._carrier().receive(instance, directory, in_use),
            self._options.virtlogd.history_timeout + history.CLOSING)

    def receive_unexpected(self, uuid: str, instance: Any, directory: str,
                           in_use: Collection[str] = ()) -> None:
        """Put in place what comes to a nova-compute that was restarted
        meanwhile.

        :param directory: path of the instance directory
        :param in_use: names of the logs that the guest's domain has
        """
        if (transfer.is_coming(directory)
                and not self._arrivals.is_awaited(uuid)):
            self._arrivals.expect(uuid)
            self._receive(uuid, instance, directory, in_use)

    def wait_for_history(self, instance: Any) -> None:
        """Let what still comes come, before it is taken elsewhere."""
        directory = libvirt_utils.get_instance_path(instance)
        self.receive_unexpected(instance.uuid, instance, directory)
        self._arrivals.settle(
            instance.uuid, lambda: transfer.is_coming(directory))

    def wait_before_reading(self, uuid: str) -> None:
        """Let what has just begun to come come, for a moment."""
        self._arrivals.wait(uuid, READ_WAIT)

    def gone(self, uuid: str) -> None:
        """The guest is not here any more: nothing is waited for."""
        self._arrivals.forget(uuid)

    def stop(self) -> None:
        """nova-compute ends; the next one goes on."""
        self._arrivals.stop()


class Source:
    """This host as the one that a guest leaves."""

    def __init__(self, options: Options, consoles: Consoles,
                 carrier: Callable[[], history.History]) -> None:
        """
        :param carrier: gives what carries histories, with today's options
        """
        self._options = options
        self._consoles = consoles
        self._carrier = carrier
        self._departures = transit.Departures()

    def prepare(self, context: Any, instance: Any, dest: str,
                migrate_data: Any) -> Callable[[str], str]:
        """Before memory is copied: how the guest's XML is to be rewritten.

        :param dest: name of the destination, as nova has it
        :param migrate_data: nova's LibvirtLiveMigrateData
        :returns: gives the domain XML for the destination; NovaException
            where that cannot be
        """
        departure = transfer.Departure(
            field(migrate_data, 'target_connect_addr') or dest,
            libvirt_utils.get_instance_path(instance),
            bool(field(migrate_data, 'is_shared_instance_path')))
        self._departures.prepare(instance.uuid, lambda: self._carrier().pack(
            instance, departure.moves(),
            None if departure.shared else departure.host))
        destination = migration.Destination(
            capable=self._is_capable(context, dest),
            address=field(migrate_data, 'serial_listen_addr'),
            tcp_ports=field(migrate_data, 'serial_listen_ports') or ())

        def rewrite(domain_xml: str) -> str:
            with nova_errors(instance):
                return migration.for_destination(
                    domain_xml, destination, departure.next_log,
                    self._options.virtlogd.upgrade_on_migration)

        return rewrite

    @staticmethod
    def _is_capable(context: Any, dest: str) -> bool:
        """Whether another host runs this driver and can have both consoles.

        Its trait would not tell: it stays where the driver does not.
        """
        try:
            node = objects.ComputeNode.get_first_node_by_host_for_old_compat(
                context, dest)
            return (node.stats or {}).get(STAT) == str(True)
        except Exception:
            # Whatever it is, it must not stop the guest from moving.
            LOG.exception('What host %s can do is not known: the guest moves '
                          'without its log', dest)
            return False

    def left(self, uuid: str) -> None:
        """The guest runs on its destination: what it wrote is sent there."""
        self._departures.start(uuid)

    def undefined(self, uuid: str) -> None:
        """libvirt has undefined the guest here by itself."""
        self._consoles.undefined(uuid)

    def wait_until_packed(self, uuid: str) -> None:
        """Return when nova may delete the instance directory."""
        self._departures.wait_until_packed(uuid)

    def stayed(self, instance: Any, migrate_data: Any) -> None:
        """The migration has failed: what was begun for it is undone."""
        if field(migrate_data, 'is_shared_instance_path'):
            with history.never_fatal(instance):
                transfer.remove_begun(
                    libvirt_utils.get_instance_path(instance),
                    char_device.log_names(
                        self._consoles.serial_ports(instance)))

    def forget(self, uuid: str) -> None:
        """The guest has stayed, or is gone."""
        self._departures.forget(uuid)

    def stop(self) -> None:
        """nova-compute ends, once nothing is on its way any more."""
        self._departures.finish()
