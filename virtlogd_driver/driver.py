# SPDX-License-Identifier: Apache-2.0
"""The compute driver: nova's libvirt driver, with better consoles.

Each override says in a few lines what differs from nova and calls the room
that knows how. This is the only module that imports nova.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import nova.conf
from nova import exception as nova_exception
from nova import objects
from nova import version as nova_version
from nova.compute import task_states
from nova.console import serial as serial_console
from nova.console import type as ctype
from nova.scheduler.client import report
from nova.virt import hardware
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import utils as libvirt_utils
from oslo_concurrency import processutils
from oslo_log import log as logging

from virtlogd_driver import conf, exception, host, nova_release
from virtlogd_driver.console_log import chain, generation, reader, transfer
from virtlogd_driver.guest import char_device, migration, plan, serial_port
from virtlogd_driver.virtlogd import settings

LOG = logging.getLogger(__name__)
CONF = nova.conf.CONF
conf.register_opts(CONF)

#: A host that runs this driver and can have both consoles at once.
TRAIT = 'CUSTOM_CONSOLE_LOG_VIRTLOGD'
ANY_IPV4 = '0.0.0.0'  # noqa: S104


class VirtlogdDriver(libvirt_driver.LibvirtDriver):
    """nova's libvirt driver with a log and an interactive console at once."""

    _capability: host.ConsoleCapability | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        version = nova_version.version_string()
        LOG.info('Compute driver virtlogd_driver %s on nova %s',
                 metadata.version('virtlogd-driver'), version)
        with _nova_errors():
            nova_release.check(version)
            self._ports = serial_port.PortPool(
                serial_port.PortRange.parse(CONF.serial_console.port_range),
                host.is_free)
        # Guests on their way to another host, by UUID.
        self._departing: dict[str, transfer.Departure] = {}

    # The host

    def init_host(self, host: str) -> None:
        super().init_host(host)
        with _nova_errors():
            _check_options()
            self._console_capability()
            self._adopt_ports()

    def _console_capability(self) -> host.ConsoleCapability:
        """What this host can do, decided anew when its versions change."""
        found = host.console_capability(
            self._host.get_connection(),
            settings.read_stdio_handler(CONF.virtlogd.qemu_conf))
        if found != self._capability:
            log = LOG.info if found.capable else LOG.warning
            log('Guest consoles: %s', found)
            self._capability = found
        return found

    def _adopt_ports(self) -> None:
        """Know again which guest holds which port (nova forgets)."""
        for guest in host.list_guests(self._host.get_connection()):
            try:
                devices = char_device.parse(guest.xml)
            except exception.InvalidGuestXML as e:
                LOG.warning('The serial ports of guest %s are not known: %s',
                            guest.name, e)
                continue
            self._ports.adopt(guest.uuid, char_device.addresses(devices))

    # What a guest gets

    def _create_consoles(self, guest_cfg: Any, instance: Any, flavor: Any,
                         image_meta: Any) -> None:
        """Instead of nova's: the decision table, for every operation.

        nova takes a domain that is still defined (rescue, resize on the same
        host, a reverted migration) for a live migration, and leaves the guest
        without any serial device.
        """
        if CONF.libvirt.virt_type == 'parallels':
            return
        with _nova_errors():
            wanted = self._console_plan(flavor, image_meta)
            for device in self._console_devices(wanted, instance):
                guest_cfg.add_device(_NovaCharDevice(device))

    def _console_plan(self, flavor: Any, image_meta: Any) -> plan.ConsolePlan:
        return plan.plan(
            capable=self._console_capability().capable,
            serial_console=CONF.serial_console.enabled,
            fallback=CONF.virtlogd.fallback_device,
            architecture=self._check_emulation_arch(image_meta),
            ports=hardware.get_number_of_serial_ports(flavor, image_meta),
            container=CONF.libvirt.virt_type == 'lxc')

    def _console_devices(
            self, wanted: plan.ConsolePlan,
            instance: Any) -> tuple[char_device.CharDevice, ...]:
        log_files = [self._live_log(instance, port)
                     for port in range(wanted.ports)]
        _begin_logs(log_files)
        if wanted.backend != 'tcp':
            return wanted.devices(log_files)
        address = CONF.serial_console.proxyclient_address
        return wanted.devices(log_files, address, self._ports.acquire(
            instance.uuid, address, wanted.ports))

    def _live_log(self, instance: Any, port: int = 0) -> str:
        """Path of the log that the next start of the guest appends to."""
        directory = libvirt_utils.get_instance_path(instance)
        names = os.listdir(directory) if os.path.isdir(directory) else []
        return os.path.join(directory, generation.live_name(
            port, generation.newest(names, port) or 0))

    def spawn(self, context: Any, instance: Any, image_meta: Any,
              *args: Any, **kwargs: Any) -> None:
        """nova's, once it is sure that the guest can have its ports."""
        with _nova_errors():
            self._console_plan(instance.flavor, image_meta)
        super().spawn(context, instance, image_meta, *args, **kwargs)

    # The two consoles

    def get_console_output(self, context: Any, instance: Any) -> bytes:
        """The newest bytes of the guest's first serial port.

        The log is where the domain says, whether it runs or not; where there
        is no domain (any more), it is where this driver puts it.
        """
        with _nova_errors(instance):
            named = self._named_log(instance)
            try:
                return reader.read_tail(
                    named or self._live_log(instance),
                    CONF.virtlogd.max_console_bytes).data
            except exception.LogNotFound:
                if named is None:
                    raise
                LOG.info('The guest has not written its log %s yet', named,
                         instance=instance)
                return b''

    def _named_log(self, instance: Any) -> str | None:
        """The log that the domain names, if there is a domain."""
        with contextlib.suppress(nova_exception.InstanceNotFound,
                                 exception.GuestNotFound):
            for device in self._serial_ports(instance):
                return device.log_file
        return None

    def _serial_ports(
            self, instance: Any) -> tuple[char_device.CharDevice, ...]:
        with host.translated():
            return char_device.parse(
                self._host.get_guest(instance).get_xml_desc())

    def get_serial_console(self, context: Any,
                           instance: Any) -> ctype.ConsoleSerial:
        """Where the guest's first serial port listens."""
        with _nova_errors(instance):
            devices = self._serial_ports(instance)
        for address, port in char_device.addresses(devices):
            return ctype.ConsoleSerial(host=address, port=port)
        LOG.info('The guest has no interactive console: its serial ports are '
                 '%s. Guest consoles on this host: %s',
                 [d.type for d in devices], self._capability,
                 instance=instance)
        raise nova_exception.ConsoleTypeUnavailable(console_type='serial')

    # The ports that a guest holds until it is undefined

    def _undefine_domain(self, instance: Any, *args: Any,
                         **kwargs: Any) -> None:
        super()._undefine_domain(instance, *args, **kwargs)
        self._ports.release(instance.uuid)

    def post_live_migration_at_source(self, context: Any, instance: Any,
                                      network_info: Any) -> None:
        """libvirt has undefined the guest here by itself."""
        super().post_live_migration_at_source(context, instance, network_info)
        self._ports.release(instance.uuid)

    # Live migration: a new log on the destination, its history after it

    def update_provider_tree(self, provider_tree: Any, nodename: str,
                             *args: Any, **kwargs: Any) -> None:
        """Let other hosts, and flavors, know what this one can do."""
        super().update_provider_tree(provider_tree, nodename, *args, **kwargs)
        with _nova_errors():
            if self._console_capability().capable:
                provider_tree.add_traits(nodename, TRAIT)
            else:
                provider_tree.remove_traits(nodename, TRAIT)

    def pre_live_migration(self, context: Any, instance: Any,
                           block_device_info: Any, network_info: Any,
                           disk_info: Any, migrate_data: Any) -> Any:
        """At the destination: the ports and the logs that are to be.

        nova's own search for ports knows IPv4 alone, and not which guest
        holds which; what it finds is given back at once.
        """
        address = migrate_data.serial_listen_addr
        if address is not None:
            migrate_data.serial_listen_addr = ANY_IPV4
        try:
            data = super().pre_live_migration(
                context, instance, block_device_info, network_info, disk_info,
                migrate_data)
        finally:
            migrate_data.serial_listen_addr = address
        for port in data.serial_listen_ports:
            serial_console.release_port(ANY_IPV4, port)
        with _nova_errors(instance):
            wanted = self._console_plan(instance.flavor, instance.image_meta)
            if address is not None:
                data.serial_listen_ports = list(self._ports.acquire(
                    instance.uuid, address, wanted.ports))
            if wanted.logged:
                directory = libvirt_utils.get_instance_path_at_destination(
                    instance, migrate_data)
                _begin_logs([
                    os.path.join(directory, generation.live_name(
                        port, transfer.next_generation(directory, port)))
                    for port in range(wanted.ports)])
        return data

    def _live_migration_operation(
            self, context: Any, instance: Any, dest: str,
            block_migration: bool, migrate_data: Any, guest: Any,
            device_names: Any) -> None:
        """At the source: the guest's XML is rewritten for its destination."""
        departure = transfer.Departure(
            dest if migrate_data.target_connect_addr is None
            else migrate_data.target_connect_addr,
            libvirt_utils.get_instance_path(instance),
            migrate_data.is_shared_instance_path)
        self._departing[instance.uuid] = departure
        destination = migration.Destination(
            capable=self._is_capable(context, dest),
            address=migrate_data.serial_listen_addr,
            tcp_ports=migrate_data.serial_listen_ports)

        def rewrite(domain_xml: str) -> str:
            with _nova_errors(instance):
                return migration.for_destination(
                    domain_xml, destination, departure.next_log,
                    CONF.virtlogd.upgrade_on_migration)

        super()._live_migration_operation(
            context, instance, dest, block_migration, migrate_data,
            _DepartingGuest(guest, rewrite), device_names)

    def _verify_serial_console_is_disabled(self) -> None:
        """A destination without serial consoles is no reason to refuse."""

    def _is_capable(self, context: Any, dest: str) -> bool:
        """Whether another host runs this driver and can have both consoles.

        Its trait tells, as nova asks for those of another host itself
        (nova/virt/hardware.py, check_shares_supported).
        """
        try:
            node = objects.ComputeNode.get_first_node_by_host_for_old_compat(
                context, dest)
            found = report.report_client_singleton().get_provider_traits(
                context, node.uuid).traits
        except Exception:
            # Whatever it is, it must not stop the guest from moving.
            LOG.exception('What host %s can do is not known: the guest moves '
                          'without its log', dest)
            return False
        return TRAIT in found

    def post_live_migration(self, context: Any, instance: Any, *args: Any,
                            **kwargs: Any) -> None:
        """At the source, which the guest has left: send its history."""
        super().post_live_migration(context, instance, *args, **kwargs)
        departure = self._departing.pop(instance.uuid, None)
        if departure is not None:
            self._send(instance, departure.moves(),
                       None if departure.shared else departure.host)

    def post_live_migration_at_destination(
            self, context: Any, instance: Any, *args: Any,
            **kwargs: Any) -> None:
        """Put the history that was sent in place."""
        super().post_live_migration_at_destination(
            context, instance, *args, **kwargs)
        self._receive(instance, libvirt_utils.get_instance_path(instance))

    def rollback_live_migration_at_source(
            self, context: Any, instance: Any, migrate_data: Any) -> None:
        """The guest has stayed: what was begun for it elsewhere is not."""
        super().rollback_live_migration_at_source(
            context, instance, migrate_data)
        departure = self._departing.pop(instance.uuid, None)
        if departure is not None and departure.shared:
            for here, _ in departure.moves():
                transfer.remove_empty(*os.path.split(here))

    # Cold migration, resize, rebuild: the history goes along

    def migrate_disk_and_power_off(self, context: Any, instance: Any,
                                   dest: str, flavor: Any, *args: Any,
                                   **kwargs: Any) -> Any:
        with _nova_errors():
            self._console_plan(flavor, instance.image_meta)
        disk_info = super().migrate_disk_and_power_off(
            context, instance, dest, flavor, *args, **kwargs)
        there = libvirt_utils.get_instance_path(instance)
        # nova has made the directory anew where the storage is shared.
        self._send(instance, transfer.moves(f'{there}_resize', there),
                   None if os.path.isdir(there) else dest)
        return disk_info

    def finish_migration(self, context: Any, migration: Any, instance: Any,
                         *args: Any, **kwargs: Any) -> None:
        self._receive(instance, libvirt_utils.get_instance_path(instance))
        super().finish_migration(context, migration, instance, *args,
                                 **kwargs)

    def finish_revert_migration(self, context: Any, instance: Any,
                                *args: Any, **kwargs: Any) -> None:
        """What was written meanwhile comes back with the guest."""
        there = libvirt_utils.get_instance_path(instance)
        if os.path.isdir(there) and os.path.isdir(f'{there}_resize'):
            self._send(instance, transfer.moves(there, f'{there}_resize'),
                       None)
        self._receive(instance, f'{there}_resize')
        super().finish_revert_migration(context, instance, *args, **kwargs)

    def cleanup(self, context: Any, instance: Any, network_info: Any,
                block_device_info: Any = None, destroy_disks: bool = True,
                *args: Any, **kwargs: Any) -> None:
        """Before nova deletes the directory: save what is to stay."""
        directory = libvirt_utils.get_instance_path(instance)
        rebuilt = destroy_disks and (
            instance.task_state == task_states.REBUILDING)
        if rebuilt:
            aside = f'{directory}_console'
            os.makedirs(aside, mode=0o700, exist_ok=True)
            self._stage(instance, transfer.moves(directory, directory), aside)
        elif destroy_disks and (
                instance.task_state == task_states.RESIZE_REVERTING):
            self._send(instance,
                       transfer.moves(directory, f'{directory}_resize'),
                       _reverted_to(context, instance))
        try:
            super().cleanup(context, instance, network_info,
                            block_device_info, destroy_disks, *args, **kwargs)
        finally:
            if rebuilt:
                os.makedirs(directory, exist_ok=True)
                transfer.receive(aside, directory)

    def _stage(self, instance: Any, moves: list[transfer.Move],
               directory: str) -> None:
        """Whatever fails with its log, the guest goes on."""
        try:
            failed = transfer.stage(
                moves, directory, CONF.virtlogd.max_history_bytes,
                lambda path, limit: reader.read_tail(path, limit).data)
        except OSError as e:
            failed = [exception.LogError(str(e))]
        for error in failed:
            LOG.warning('The output of the guest from before does not follow '
                        'it: %s', error, instance=instance)

    def _send(self, instance: Any, moves: list[transfer.Move],
              to_host: str | None) -> None:
        """Carry the history of a guest.

        :param to_host: None: this one, or one that shares its storage
        """
        if not moves:
            return
        here, there = (os.path.dirname(path) for path in moves[0])
        if to_host is None:
            self._stage(instance, moves, there)
            self._receive(instance, there)
            return
        self._stage(instance, moves, here)
        staging = os.path.join(here, transfer.STAGING)
        try:
            libvirt_utils.copy_image(staging, f'{there}/', host=to_host)
        except (OSError, processutils.ProcessExecutionError) as e:
            LOG.warning('The output of the guest from before does not follow '
                        'it to %s: %s', to_host, e, instance=instance)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _receive(self, instance: Any, directory: str) -> None:
        for name in transfer.receive(directory, directory):
            LOG.warning('The output of the guest from before has not come '
                        'whole, and is left out: %s', name, instance=instance)


class _DepartingGuest:
    """nova's guest, but for the XML that its destination is given."""

    def __init__(self, guest: Any, rewrite: Callable[[str], str]) -> None:
        self._guest = guest
        self._rewrite = rewrite

    def __getattr__(self, name: str) -> Any:
        return getattr(self._guest, name)

    def get_xml_desc(self, *args: Any, **kwargs: Any) -> str:
        domain_xml: str = self._guest.get_xml_desc(*args, **kwargs)
        if kwargs.get('dump_migratable'):
            return self._rewrite(domain_xml)
        return domain_xml


class _NovaCharDevice(vconfig.LibvirtConfigGuestSerial):
    """A device of ours among those of nova's guest configuration.

    It has the attributes of nova's own class for whoever looks at them.
    """

    def __init__(self, device: char_device.CharDevice) -> None:
        super().__init__()
        self.root_name = device.tag
        self.type = device.type
        self._device = device
        if device.source is not None:
            self.source_path = device.source.path
            self.listen_host = device.source.host
            self.listen_port = device.source.service
        if device.log is not None:
            self.log = vconfig.LibvirtConfigGuestCharDeviceLog()
            self.log.file = device.log.file
            self.log.append = 'on' if device.log.append else 'off'
        if device.target is not None:
            self.target_port = device.target.port
            self.target_type = device.target.type

    def format_dom(self) -> Any:
        return self._device.to_element()


def _begin_logs(log_files: list[str]) -> None:
    """Mark where each log begins, before virtlogd opens it."""
    for log_file in log_files:
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            chain.begin(log_file)


def _reverted_to(context: Any, instance: Any) -> str:
    """The host that a resized instance goes back to."""
    name: str = objects.Migration.get_by_instance_and_status(
        context.elevated(), instance.uuid, 'reverting').source_compute
    return name


def _check_options() -> None:
    """Read each option once, so that a bad value fails at start-up."""
    for option in CONF.virtlogd:
        getattr(CONF.virtlogd, option)
    if CONF.serial_console.enabled:
        host.is_free(CONF.serial_console.proxyclient_address, 0)


@contextlib.contextmanager
def _nova_errors(instance: Any = None) -> Iterator[None]:
    """Turn this project's errors into the ones that nova expects."""
    try:
        yield
    except (exception.InvalidOption, exception.InvalidAddress) as e:
        raise nova_exception.InvalidConfiguration(str(e)) from e
    except exception.TooManySerialPorts as e:
        error = nova_exception.SerialPortNumberLimitExceeded(
            str(e), virt_type=CONF.libvirt.virt_type)
        raise error from e
    except exception.PortRangeExhausted as e:
        raise nova_exception.SocketPortRangeExhaustedException(
            str(e), host=CONF.serial_console.proxyclient_address) from e
    except exception.GuestNotFound as e:
        raise nova_exception.InstanceNotFound(
            instance_id=instance and instance.uuid) from e
    except exception.HostError as e:
        raise nova_exception.HypervisorUnavailable(str(e)) from e
    except exception.LogError as e:
        # The API passes the message on to the tenant: no path of this host.
        LOG.error('The console log cannot be read: %s', e, instance=instance)
        raise nova_exception.ConsoleNotAvailable() from e
    except exception.VirtlogdDriverError as e:
        raise nova_exception.InternalError(str(e)) from e
