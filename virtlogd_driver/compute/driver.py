# SPDX-License-Identifier: Apache-2.0
"""The compute driver: nova's libvirt driver, with better consoles.

Each override says in a few lines what differs from nova and calls the room
that knows how. With nova_edge.py the only module that imports nova.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Collection
from importlib import metadata
from typing import Any

import nova.conf
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova import version as nova_version
from nova.compute import power_state, task_states
from nova.console import serial as serial_console
from nova.console import type as ctype
from nova.objects import fields
from nova.scheduler.client import report
from nova.virt import event as virtevent
from nova.virt import hardware
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import utils as libvirt_utils
from oslo_log import log as logging

from virtlogd_driver import conf, exception
from virtlogd_driver.compute import path_cache, release
from virtlogd_driver.compute.nova_edge import (
    departing,
    device_config,
    failure_told,
    launching,
    nova_errors,
    outside_eventlet,
    tell_user,
)
from virtlogd_driver.console_log import generation, reader
from virtlogd_driver.guest import char_device, migration, plan, serial_port
from virtlogd_driver.history import boot, history, transfer, transit
from virtlogd_driver.node import hypervisor, watch
from virtlogd_driver.virtlogd import health, periodic, settings

LOG = logging.getLogger(__name__)
CONF = nova.conf.CONF
conf.register_opts(CONF)

#: A host that runs this driver and can have both consoles at once.
TRAIT = 'CUSTOM_CONSOLE_LOG_VIRTLOGD'
VERSION = metadata.version('virtlogd-driver')
#: Seconds for the history of a guest that has just come, when it is read.
READ_WAIT = 1.0
#: Where nova's own search for TCP ports finds none that is in use.
NOBODYS_ADDRESS = '127.255.255.254'


class VirtlogdDriver(libvirt_driver.LibvirtDriver):
    """nova's libvirt driver with a log and an interactive console at once."""

    _capability: hypervisor.ConsoleCapability | None = None
    _health: periodic.HealthTask | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        version = nova_version.version_string()
        LOG.info('Compute driver virtlogd_driver %s on nova %s',
                 VERSION, version)
        with nova_errors():
            release.check(version)
            self._ports = serial_port.PortPool(
                serial_port.PortRange.parse(CONF.serial_console.port_range),
                hypervisor.is_free)
        # Where the logs of guests that are being started end, by UUID.
        self._starting: dict[str, history.Ends] = {}
        self._departures = transit.Departures()
        self._arrivals = transit.Arrivals()
        self._log_paths = path_cache.PathCache()

    # The host

    def init_host(self, host: str) -> None:
        super().init_host(host)
        with nova_errors():
            _check_options()
            self._console_capability()
            self._adopt_guests()
        if CONF.virtlogd.health_interval:
            self._health = self._health_task()
            self._health.start()

    def cleanup_host(self, host: str) -> None:
        if self._health is not None:
            self._health.stop()
        super().cleanup_host(host)
        self._arrivals.stop()
        self._departures.finish()

    def _health_task(self) -> periodic.HealthTask:
        return watch.health_task(
            self._connection, periodic.Settings(
                socket_path=CONF.virtlogd.virtlogd_socket,
                interval=CONF.virtlogd.health_interval,
                timeout=CONF.virtlogd.health_timeout,
                viewer_timeout=CONF.virtlogd.viewer_timeout),
            heal=CONF.virtlogd.reattach,
            metrics_file=CONF.virtlogd.metrics_file,
            run=outside_eventlet)

    def _connection(self) -> Any:
        try:
            return self._host.get_connection()
        except nova_exception.HypervisorUnavailable as e:
            raise exception.HostError(str(e)) from e

    def _console_capability(self) -> hypervisor.ConsoleCapability:
        """What this host can do, decided anew when its versions change."""
        found = hypervisor.console_capability(
            self._host.get_connection(),
            settings.read_stdio_handler(CONF.virtlogd.qemu_conf))
        if found != self._capability:
            log = LOG.info if found.capable else LOG.warning
            log('Guest consoles: %s', found)
            self._capability = found
        return found

    def _adopt_guests(self) -> None:
        """Know again which guest holds which port (nova forgets)."""
        guests = outside_eventlet(
            hypervisor.list_guests, self._host.get_connection())
        in_use = {}
        for guest in guests:
            try:
                devices = char_device.parse(guest.xml)
            except exception.InvalidGuestXML as e:
                LOG.warning('The serial ports of guest %s are not known: %s',
                            guest.name, e)
                continue
            self._ports.adopt(guest.uuid, char_device.addresses(devices))
            in_use[guest.uuid] = char_device.log_names(devices)
        with history.never_fatal(
                None, 'The old output of guests is not put in place'):
            self._adopt_histories(in_use)
            for path in history.left_behind(CONF.instances_path):
                LOG.warning('nova-compute ended before %s was copied, where '
                            'the output of a guest is that has moved to '
                            'another host. Look at it, then remove it', path)

    def _adopt_histories(self, in_use: dict[str, list[str]]) -> None:
        """What came while this host had nova's own driver.

        A guest that is evacuated has its directory elsewhere, or a shared one
        that is not for this host to touch.
        """
        here = objects.InstanceList.get_uuids_by_host(
            nova_context.get_admin_context(), CONF.host) if in_use else []
        for uuid in in_use.keys() & set(here):
            directory = os.path.join(CONF.instances_path, uuid)
            self._history.adopt(
                uuid, directory, _aside(directory), in_use[uuid])
            self._receive_unexpected(uuid, None, directory, in_use[uuid])

    def _release_leftovers(self) -> None:
        """Take back ports that were reserved for guests that never came.

        nova tells the destination of a failed migration only where there are
        files to delete.
        """
        held = set(self._ports.held().values())
        if not held:
            return
        held -= set(hypervisor.guest_uuids(self._connection()))
        context = nova_context.get_admin_context()
        for uuid in held:
            try:
                instance = objects.Instance.get_by_uuid(context, uuid)
                if instance.task_state is not None:
                    continue
            except nova_exception.InstanceNotFound:
                pass
            # It may have come while nova was asked.
            if uuid not in hypervisor.guest_uuids(self._connection()):
                LOG.info('Serial ports that were reserved for guest %s, '
                         'which is not here, are free again', uuid)
                self._ports.release(uuid)

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
        with nova_errors():
            wanted = self._console_plan(flavor, image_meta)
            for device in self._console_devices(wanted, instance):
                guest_cfg.add_device(device_config(device))

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
        history.begin_logs(log_files)
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

    # Before a guest starts, and before a running one is touched for it:
    # libvirt starts none without virtlogd, and hangs with one that hangs

    def spawn(self, context: Any, instance: Any, image_meta: Any,
              *args: Any, **kwargs: Any) -> None:
        with nova_errors():
            wanted = self._console_plan(instance.flavor, image_meta)
        # A new guest can go to another host; one that there is already is
        # started even if it has no log. Its directory is not there yet.
        full = self._check_virtlogd(instance, CONF.instances_path)
        if full:
            raise nova_exception.InternalError(str(full)) from full
        if wanted.logged:
            self._history.begin_evacuated(
                instance, libvirt_utils.get_instance_path(instance))
        super().spawn(context, instance, image_meta, *args, **kwargs)

    def rescue(self, context: Any, instance: Any, *args: Any,
               **kwargs: Any) -> None:
        self._check_virtlogd(instance)
        super().rescue(context, instance, *args, **kwargs)

    def unrescue(self, context: Any, instance: Any) -> None:
        self._check_virtlogd(instance)
        super().unrescue(context, instance)

    def reboot(self, context: Any, instance: Any, network_info: Any,
               reboot_type: str, *args: Any, **kwargs: Any) -> None:
        with failure_told(context, instance):
            if reboot_type == 'SOFT':
                self._check_virtlogd(instance)
            super().reboot(context, instance, network_info, reboot_type,
                           *args, **kwargs)

    def _hard_reboot(self, context: Any, instance: Any, *args: Any,
                     **kwargs: Any) -> None:
        self._check_virtlogd(instance)
        super()._hard_reboot(context, instance, *args, **kwargs)

    def _suspend_guest_for_snapshot(
            self, context: Any, live_snapshot: bool, current_power_state: int,
            instance: Any) -> None:
        if self._needs_suspend_resume_for_snapshot(
                live_snapshot, current_power_state):
            with failure_told(context, instance):
                self._check_virtlogd(instance)
        super()._suspend_guest_for_snapshot(
            context, live_snapshot, current_power_state, instance)

    def _create_guest(self, context: Any, xml: Any, instance: Any,
                      power_on: bool = True, pause: bool = False,
                      *args: Any, **kwargs: Any) -> Any:
        """Note where its logs end, as long as the guest writes nothing."""
        if power_on or pause:
            full = self._check_virtlogd(instance)
            if full:
                LOG.warning('%s', full, instance=instance)
                tell_user(context, instance, full)
            self._note_ends(instance, xml)
        try:
            return super()._create_guest(
                context, xml, instance, power_on, pause, *args, **kwargs)
        finally:
            self._log_paths.forget(instance.uuid)

    def _soft_reboot(self, instance: Any) -> bool:
        """Of a guest that has shut down nova starts the domain itself."""
        done: bool = super()._soft_reboot.__func__(
            launching(self, lambda xml: self._note_ends(instance, xml)),
            instance)
        return done

    def _note_ends(self, instance: Any, xml: Any) -> None:
        with history.never_fatal(
                instance, 'The start of the guest is not noted'):
            logs = history.guest_logs(xml)
            self._history.wait_until_closed(list(logs.values()))
            self._starting[instance.uuid] = history.ends(logs)

    def _check_virtlogd(
            self, instance: Any,
            directory: str | None = None) -> exception.LogDiskFull | None:
        """Say what is wrong with the log before anything is done.

        :param directory: where the log will be, if not where it is
        :returns: that the disk is full, if it is: it costs the log
        """
        if CONF.libvirt.virt_type not in ('kvm', 'qemu'):
            return None
        log = (self._live_log(instance) if directory is None
               else os.path.join(directory, 'console.log'))
        with nova_errors(instance):
            try:
                if self._console_capability().capable:
                    health.check_ready(CONF.virtlogd.virtlogd_socket, [log],
                                       CONF.virtlogd.health_timeout)
            except exception.LogDiskFull as e:
                return e
        return None

    # The two consoles

    def get_console_output(self, context: Any, instance: Any) -> bytes:
        """The newest bytes of the guest's first serial port.

        The log is where the domain says, whether it runs or not; where there
        is no domain (any more), it is where this driver puts it.
        """
        self._arrivals.wait(instance.uuid, READ_WAIT)
        with nova_errors(instance):
            named = self._named_log(instance)
            try:
                return reader.read_tail(
                    named or self._live_log(instance),
                    CONF.virtlogd.max_console_bytes).data
            except exception.LogNotFound:
                if named is None:
                    raise
                self._log_paths.forget(instance.uuid)
                LOG.info('The guest has not written its log %s yet', named,
                         instance=instance)
                return b''

    def _named_log(self, instance: Any) -> str | None:
        """The log that the domain names, if there is a domain."""
        def look() -> str | None:
            devices = self._serial_ports(instance)
            return devices[0].log_file if devices else None

        with contextlib.suppress(nova_exception.InstanceNotFound,
                                 exception.GuestNotFound):
            return self._log_paths.get(instance.uuid, look)
        return None

    def _serial_ports(
            self, instance: Any) -> tuple[char_device.CharDevice, ...]:
        with hypervisor.translated():
            return char_device.parse(
                self._host.get_guest(instance).get_xml_desc())

    def get_serial_console(self, context: Any,
                           instance: Any) -> ctype.ConsoleSerial:
        """Where the guest's first serial port listens."""
        with nova_errors(instance):
            devices = self._serial_ports(instance)
        for address, port in char_device.addresses(devices):
            return ctype.ConsoleSerial(host=address, port=port)
        LOG.info('The guest has no interactive console: its serial ports are '
                 '%s. Guest consoles on this host: %s',
                 [d.type for d in devices], self._capability,
                 instance=instance)
        raise nova_exception.ConsoleTypeUnavailable(console_type='serial')

    # Where in its log a guest was started

    def emit_event(self, event: Any) -> None:
        """Note each start, whoever started the guest."""
        if isinstance(event, virtevent.LifecycleEvent):
            self._log_paths.forget(event.uuid)
            if event.transition == virtevent.EVENT_LIFECYCLE_STARTED:
                with history.never_fatal(
                        None, f'The start of guest {event.uuid} is not noted'):
                    self._note_boot(event.uuid)
        super().emit_event(event)

    def _note_boot(self, uuid: str) -> None:
        ends = self._starting.pop(uuid, None)
        xml = hypervisor.booted_xml(self._connection(), uuid)
        logs = {} if xml is None else history.guest_logs(xml)
        if logs:
            # Not by nova: what it wrote until now is taken for older.
            boot.add(os.path.dirname(next(iter(logs.values()))), boot.Boot(
                time.time(), history.ends(logs) if ends is None else ends))

    # The ports that a guest holds until it is undefined

    def _undefine_domain(self, instance: Any, *args: Any,
                         **kwargs: Any) -> None:
        super()._undefine_domain(instance, *args, **kwargs)
        self._ports.release(instance.uuid)
        self._log_paths.forget(instance.uuid)
        # What is left of a start or a migration that has failed.
        self._starting.pop(instance.uuid, None)
        self._departures.forget(instance.uuid)

    def post_live_migration_at_source(self, context: Any, instance: Any,
                                      network_info: Any) -> None:
        """libvirt has undefined the guest here by itself.

        nova deletes its directory next.
        """
        self._ports.release(instance.uuid)
        self._log_paths.forget(instance.uuid)
        self._arrivals.forget(instance.uuid)
        try:
            super().post_live_migration_at_source(
                context, instance, network_info)
        finally:
            self._departures.wait_until_packed(instance.uuid)

    # Live migration: a new log on the destination, its history after it

    def update_provider_tree(self, provider_tree: Any, nodename: str,
                             *args: Any, **kwargs: Any) -> None:
        """Let other hosts, and flavors, know what this one can do."""
        super().update_provider_tree(provider_tree, nodename, *args, **kwargs)
        with nova_errors():
            if self._console_capability().capable:
                provider_tree.add_traits(nodename, TRAIT)
            else:
                provider_tree.remove_traits(nodename, TRAIT)
        with history.never_fatal(None, 'Unused serial ports are not released'):
            self._release_leftovers()

    def check_can_live_migrate_destination(
            self, context: Any, instance: Any, *args: Any,
            **kwargs: Any) -> Any:
        """At the destination, before anything is done: can it log there?"""
        try:
            self._check_arrival(instance)
        except exception.VirtlogdDriverError as e:
            raise nova_exception.MigrationPreCheckError(
                reason=f'{CONF.host}: {e}') from e
        return super().check_can_live_migrate_destination(
            context, instance, *args, **kwargs)

    def _check_arrival(self, instance: Any) -> None:
        """:raises VirtlogdDriverError: what is missing, and the remedy"""
        wanted = self._console_plan(instance.flavor, instance.image_meta)
        if CONF.serial_console.enabled:
            self._ports.check(
                instance.uuid, CONF.serial_console.proxyclient_address,
                wanted.ports)
        path = os.path.join(CONF.instances_path, 'console.log')
        room = wanted.ports * CONF.virtlogd.max_history_bytes
        if not os.access(CONF.instances_path, os.W_OK | os.X_OK):
            raise exception.LogRefused(
                f'{CONF.instances_path} is not there, or nova-compute may '
                f'not write to it. Create or mount it, or correct '
                f'instances_path.')
        if wanted.logged:
            health.check_ready(CONF.virtlogd.virtlogd_socket, [path],
                               CONF.virtlogd.health_timeout)
        free = health.free_space(path)
        if free is not None and free < room:
            raise exception.LogDiskFull(
                f'There are {free} bytes free in {CONF.instances_path}, and '
                f'what the guest wrote may take {room}. Free some space, or '
                f'lower [virtlogd] max_history_bytes.')

    def pre_live_migration(self, context: Any, instance: Any,
                           block_device_info: Any, network_info: Any,
                           disk_info: Any, migrate_data: Any) -> Any:
        """At the destination: the ports and the logs that are to be.

        nova's own search for ports knows IPv4 alone, and not which guest
        holds which; it finds some elsewhere, which are given back at once.
        """
        address = _set_in(migrate_data, 'serial_listen_addr')
        if address is not None:
            migrate_data.serial_listen_addr = NOBODYS_ADDRESS
        try:
            data = super().pre_live_migration(
                context, instance, block_device_info, network_info, disk_info,
                migrate_data)
        finally:
            for port in _set_in(migrate_data, 'serial_listen_ports') or ():
                serial_console.release_port(NOBODYS_ADDRESS, port)
            if address is not None:
                migrate_data.serial_listen_addr = address
        try:
            with nova_errors(instance):
                self._prepare_arrival(instance, data, address)
        except Exception:
            # nova does not roll back what has not begun.
            self._ports.release(instance.uuid)
            raise
        if not _set_in(migrate_data, 'is_shared_instance_path'):
            self._arrivals.expect(instance.uuid)
        return data

    def _prepare_arrival(self, instance: Any, data: Any,
                         address: str | None) -> None:
        wanted = self._console_plan(instance.flavor, instance.image_meta)
        if address is not None and CONF.serial_console.enabled:
            data.serial_listen_ports = list(self._ports.acquire(
                instance.uuid, address, wanted.ports))
        if wanted.backend != 'tcp' or wanted.logged or address is None:
            directory = libvirt_utils.get_instance_path_at_destination(
                instance, data if _set_in(data, 'instance_relative_path')
                else None)
            history.begin_logs([
                os.path.join(directory, generation.live_name(
                    port, transfer.next_generation(directory, port)))
                for port in range(wanted.ports)])

    def _live_migration_operation(
            self, context: Any, instance: Any, dest: str,
            block_migration: bool, migrate_data: Any, guest: Any,
            device_names: Any) -> None:
        """At the source: the guest's XML is rewritten for its destination."""
        departure = transfer.Departure(
            _set_in(migrate_data, 'target_connect_addr') or dest,
            libvirt_utils.get_instance_path(instance),
            bool(_set_in(migrate_data, 'is_shared_instance_path')))
        self._settle(instance)
        self._departures.prepare(instance.uuid, lambda: self._history.pack(
            instance, departure.moves(),
            None if departure.shared else departure.host))
        destination = migration.Destination(
            capable=self._is_capable(context, dest),
            address=_set_in(migrate_data, 'serial_listen_addr'),
            tcp_ports=_set_in(migrate_data, 'serial_listen_ports') or ())

        def rewrite(domain_xml: str) -> str:
            with nova_errors(instance):
                return migration.for_destination(
                    domain_xml, destination, departure.next_log,
                    CONF.virtlogd.upgrade_on_migration)

        super()._live_migration_operation(
            context, instance, dest, block_migration, migrate_data,
            departing(guest, rewrite), device_names)
        self._departures.start(instance.uuid)

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

    def post_live_migration_at_destination(
            self, context: Any, instance: Any, *args: Any,
            **kwargs: Any) -> None:
        """Put the history that is sent in place."""
        self._log_paths.forget(instance.uuid)
        super().post_live_migration_at_destination(
            context, instance, *args, **kwargs)
        self._receive(instance.uuid, instance,
                      libvirt_utils.get_instance_path(instance))

    def _receive(self, uuid: str, instance: Any, directory: str,
                 in_use: Collection[str] = ()) -> None:
        self._arrivals.start(
            uuid, lambda: transfer.is_whole(directory),
            lambda: self._history.receive(instance, directory, in_use),
            CONF.virtlogd.history_timeout + history.CLOSING)

    def _receive_unexpected(self, uuid: str, instance: Any, directory: str,
                            in_use: Collection[str] = ()) -> None:
        """What comes to a nova-compute that was restarted meanwhile."""
        if (transfer.is_coming(directory)
                and not self._arrivals.is_awaited(uuid)):
            self._arrivals.expect(uuid)
            self._receive(uuid, instance, directory, in_use)

    def _settle(self, instance: Any) -> None:
        """Let what still comes come, before it is taken elsewhere."""
        directory = libvirt_utils.get_instance_path(instance)
        self._receive_unexpected(instance.uuid, instance, directory)
        self._arrivals.settle(
            instance.uuid, lambda: transfer.is_coming(directory))

    def rollback_live_migration_at_source(
            self, context: Any, instance: Any, migrate_data: Any) -> None:
        """The guest has stayed: what was begun for it elsewhere is not."""
        self._departures.forget(instance.uuid)
        super().rollback_live_migration_at_source(
            context, instance, migrate_data)
        if _set_in(migrate_data, 'is_shared_instance_path'):
            with history.never_fatal(instance):
                transfer.remove_begun(
                    libvirt_utils.get_instance_path(instance),
                    char_device.log_names(self._serial_ports(instance)))

    # Cold migration, resize, rebuild: the history goes along

    @property
    def _history(self) -> history.History:
        return history.History(
            libvirt_utils.copy_image, CONF.virtlogd.max_history_bytes,
            CONF.virtlogd.history_timeout, CONF.virtlogd.virtlogd_socket)

    def migrate_disk_and_power_off(self, context: Any, instance: Any,
                                   dest: str, flavor: Any, *args: Any,
                                   **kwargs: Any) -> Any:
        try:
            with nova_errors():
                self._console_plan(flavor, instance.image_meta)
            if (dest == self.get_host_ip_addr()
                    and instance.power_state == power_state.RUNNING):
                self._check_virtlogd(instance)
        except nova_exception.NovaException as e:
            # The guest is as it was.
            raise nova_exception.InstanceFaultRollback(e) from e
        self._settle(instance)
        disk_info = super().migrate_disk_and_power_off(
            context, instance, dest, flavor, *args, **kwargs)
        with history.never_fatal(instance):
            there = libvirt_utils.get_instance_path(instance)
            moves = transfer.moves(f'{there}_resize', there)
            # nova has made the directory anew where the storage is shared.
            self._history.send(
                instance, moves, None if os.path.isdir(there) else dest,
                [os.path.join(there, os.path.basename(here))
                 for here, _ in moves])
        return disk_info

    def finish_migration(self, context: Any, migration: Any, instance: Any,
                         *args: Any, **kwargs: Any) -> None:
        self._history.receive(
            instance, libvirt_utils.get_instance_path(instance))
        super().finish_migration(context, migration, instance, *args,
                                 **kwargs)

    def finish_revert_migration(self, context: Any, instance: Any,
                                *args: Any, **kwargs: Any) -> None:
        """What was written meanwhile comes back with the guest."""
        there = libvirt_utils.get_instance_path(instance)
        with history.never_fatal(instance):
            if os.path.isdir(there) and os.path.isdir(f'{there}_resize'):
                self._history.send(
                    instance, transfer.moves(there, f'{there}_resize'), None)
        self._history.receive(instance, f'{there}_resize')
        super().finish_revert_migration(context, instance, *args, **kwargs)

    def cleanup(self, context: Any, instance: Any, network_info: Any,
                block_device_info: Any = None, destroy_disks: bool = True,
                *args: Any, **kwargs: Any) -> None:
        """Before nova deletes the directory: save what is to stay."""
        directory = libvirt_utils.get_instance_path(instance)
        aside = _aside(directory)
        task = instance.get('task_state', None)
        rebuilt = False
        with history.never_fatal(instance):
            rebuilt = (destroy_disks and task == task_states.REBUILDING
                       and not self._goes_elsewhere(context, instance))
            if rebuilt:
                self._settle(instance)
                self._history.stage(
                    instance, transfer.moves(directory, directory), aside)
            elif destroy_disks:
                self._arrivals.forget(instance.uuid)
                shutil.rmtree(aside, ignore_errors=True)
            # Where the directory that is gone back to is here,
            # finish_revert_migration sees to it.
            if (task == task_states.RESIZE_REVERTING
                    and os.path.isdir(directory)
                    and not os.path.isdir(f'{directory}_resize')):
                self._send_back(context, instance, directory)
        try:
            super().cleanup(context, instance, network_info,
                            block_device_info, destroy_disks, *args, **kwargs)
        finally:
            if rebuilt:
                with history.never_fatal(instance):
                    os.makedirs(directory, exist_ok=True)
                    transfer.receive(aside, directory)

    def _goes_elsewhere(self, context: Any, instance: Any) -> bool:
        """Whether it is just evacuated: this host was lost, and is back.

        nova deletes it then (nova/compute/manager.py,
        _destroy_evacuated_instances), in the task state of a rebuild.
        """
        return bool(objects.MigrationList.get_by_filters(
            context.elevated(), {
                'instance_uuid': instance.uuid, 'source_compute': CONF.host,
                'migration_type': fields.MigrationType.EVACUATION,
                'status': ['accepted', 'pre-migrating']}))

    def _send_back(self, context: Any, instance: Any, directory: str) -> None:
        """To the host that a resized instance goes back to."""
        resize = objects.Migration.get_by_instance_and_status(
            context.elevated(), instance.uuid, 'reverting')
        # In another cell it has kept the directory under its own name; where
        # that is shared it is this one.
        if not resize.cross_cell_move:
            self._history.send(
                instance, transfer.moves(directory, f'{directory}_resize'),
                resize.source_compute)
            # nova leaves the directory where the disks are elsewhere.
            transfer.remove_all(directory)


def _aside(directory: str) -> str:
    """Where the logs are while nova deletes the directory for a rebuild."""
    return f'{directory}_console'


def _set_in(data: Any, field: str) -> Any:
    """A field of one of nova's objects; None where its sender left it out."""
    return getattr(data, field) if data.obj_attr_is_set(field) else None


def _check_options() -> None:
    """Read each option once, so that a bad value fails at start-up."""
    for option in CONF.virtlogd:
        getattr(CONF.virtlogd, option)
    if CONF.serial_console.enabled:
        hypervisor.is_free(CONF.serial_console.proxyclient_address, 0)
