# SPDX-License-Identifier: Apache-2.0
"""The compute driver is nova's libvirt driver, with better consoles.

A table of contents: each override says what differs from nova, whom it asks,
and where nova's own method comes in. How it is done is in the modules beside
this one.
"""

from typing import Any

import nova.conf
from nova import version as nova_version
from nova.console import type as ctype
from nova.virt import event as virtevent
from nova.virt.libvirt import driver as libvirt_driver

from virtlogd_driver import conf
from virtlogd_driver.compute import cold_migration, health, nova_edge, seams
from virtlogd_driver.compute.consoles import Consoles
from virtlogd_driver.compute.histories import Histories
from virtlogd_driver.compute.live_migration import Destination, Source
from virtlogd_driver.compute.options import Options
from virtlogd_driver.compute.starts import Starts
from virtlogd_driver.node import hypervisor
from virtlogd_driver.virtlogd import periodic

CONF = nova.conf.CONF
conf.register_opts(CONF)


class VirtlogdDriver(libvirt_driver.LibvirtDriver):
    """nova's libvirt driver gets a log and a serial console at once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._health: periodic.HealthTask | None = None
        with nova_edge.nova_errors():
            seams.announce(nova_version.version_string())
            self._compose(Options(CONF))

    def _compose(self, options: Options) -> None:
        self._options = options
        self._connection = connect = nova_edge.connection_of(self._host)
        kept = nova_edge.history_of(options)
        self._consoles = Consoles(options, connect, nova_edge.domain_xml_of(
            self._host), self._check_emulation_arch)
        self._histories = Histories(options, self._consoles, connect, kept)
        self._starts = Starts(options, self._consoles, connect, kept)
        self._source = Source(options, self._consoles, self._histories)
        self._arrivals = Destination(options, self._consoles)
        self._moves = cold_migration.ColdMigration(
            options, self._consoles, self._starts, self._histories)

    # The host

    def init_host(self, host: str) -> None:
        super().init_host(host)
        with nova_edge.nova_errors():
            self._options.check()
            self._consoles.capability()
            self._adopt_guests()
        self._health = health.start(self._options, self._connection,
                                    self._histories.deletions)

    def _adopt_guests(self) -> None:
        self._histories.adopt(self._consoles.adopt(nova_edge.outside_eventlet(
            hypervisor.list_guests, self._connection())))

    def cleanup_host(self, host: str) -> None:
        if self._health is not None:
            self._health.stop()
        super().cleanup_host(host)
        self._starts.stop()
        self._histories.stop()

    def get_available_resource(self, nodename: str) -> Any:
        """Let other hosts know what this one can do, as long as it can."""
        return self._arrivals.describe(
            super().get_available_resource(nodename))

    def update_provider_tree(self, provider_tree: Any, nodename: str,
                             *args: Any, **kwargs: Any) -> None:
        """Let flavors require what this host can do."""
        super().update_provider_tree(provider_tree, nodename, *args, **kwargs)
        self._arrivals.publish(provider_tree, nodename)
        self._consoles.release_unused(cold_migration.is_expected)
        self._histories.look_around()

    # What a guest gets

    def _create_consoles(self, guest_cfg: Any, instance: Any, flavor: Any,
                         image_meta: Any) -> None:
        """Give the guest its serial devices; nova's takes a domain that is
        still defined (rescue, resize, revert) for a live migration."""
        self._histories.recover(instance)
        with nova_edge.nova_errors():
            for device in self._consoles.devices(instance, flavor, image_meta):
                guest_cfg.add_device(nova_edge.device_config(device))

    def _undefine_domain(self, instance: Any, *args: Any,
                         **kwargs: Any) -> None:
        """Release the TCP ports of a guest that is undefined."""
        super()._undefine_domain(instance, *args, **kwargs)
        self._consoles.undefined(instance.uuid)
        self._starts.forget(instance.uuid)
        self._source.forget(instance.uuid)

    # Before a guest starts, or is touched for it: is virtlogd ready

    def spawn(self, context: Any, instance: Any, image_meta: Any,
              *args: Any, **kwargs: Any) -> None:
        """Refuse a guest that could not be logged: nova tries elsewhere."""
        with nova_edge.nova_errors():
            wanted = self._consoles.plan(instance.flavor, image_meta)
        self._starts.check_new(instance)
        if wanted.logged:
            self._moves.evacuated(instance)
        super().spawn(context, instance, image_meta, *args, **kwargs)

    def rescue(self, context: Any, instance: Any, *args: Any,
               **kwargs: Any) -> None:
        self._starts.check(instance)
        super().rescue(context, instance, *args, **kwargs)

    def unrescue(self, context: Any, instance: Any) -> None:
        self._starts.check(instance)
        super().unrescue(context, instance)

    def reboot(self, context: Any, instance: Any, network_info: Any,
               reboot_type: str, *args: Any, **kwargs: Any) -> None:
        with nova_edge.failure_told(context, instance):
            if reboot_type == 'SOFT':
                self._starts.check(instance)
            super().reboot(context, instance, network_info, reboot_type,
                           *args, **kwargs)

    def _hard_reboot(self, context: Any, instance: Any, *args: Any,
                     **kwargs: Any) -> None:
        self._starts.check(instance)
        super()._hard_reboot(context, instance, *args, **kwargs)

    def _soft_reboot(self, instance: Any) -> bool:
        """Note where the log ends before nova starts the guest again."""
        done: bool = super()._soft_reboot.__func__(nova_edge.launching(
            self, lambda xml: self._starts.note_ends(instance, xml)), instance)
        return done

    def _suspend_guest_for_snapshot(
            self, context: Any, live_snapshot: bool, current_power_state: int,
            instance: Any) -> None:
        if self._needs_suspend_resume_for_snapshot(
                live_snapshot, current_power_state):
            with nova_edge.failure_told(context, instance):
                self._starts.check(instance)
        super()._suspend_guest_for_snapshot(
            context, live_snapshot, current_power_state, instance)

    def _create_guest(self, context: Any, xml: Any, instance: Any,
                      power_on: bool = True, pause: bool = False,
                      *args: Any, **kwargs: Any) -> Any:
        """Note where the log ends, as long as the guest writes nothing."""
        if power_on or pause:
            self._starts.starting(context, instance, xml)
        try:
            return super()._create_guest(
                context, xml, instance, power_on, pause, *args, **kwargs)
        finally:
            self._consoles.changed(instance.uuid)

    def emit_event(self, event: Any) -> None:
        """Note each start of a guest, whoever started it."""
        if isinstance(event, virtevent.LifecycleEvent):
            self._consoles.changed(event.uuid)
            self._starts.event(event)
        super().emit_event(event)

    # The two consoles

    def get_console_output(self, context: Any, instance: Any) -> bytes:
        """Read the console log, whether the guest runs or not."""
        with nova_edge.nova_errors(instance):
            self._histories.wait_before_reading(instance)
            return self._consoles.output(instance)

    def get_serial_console(self, context: Any,
                           instance: Any) -> ctype.ConsoleSerial:
        """Say where the guest's first serial port listens."""
        with nova_edge.nova_errors(instance):
            return self._consoles.interactive(instance)

    # Live migration, in the order in which nova calls it

    def check_can_live_migrate_destination(
            self, context: Any, instance: Any, *args: Any,
            **kwargs: Any) -> Any:
        """Refuse a guest that could not have its console here."""
        with nova_edge.refused_beforehand(self._options.host):
            self._arrivals.check(instance)
        return super().check_can_live_migrate_destination(
            context, instance, *args, **kwargs)

    def _verify_serial_console_is_disabled(self) -> None:
        """Let guests move to a destination without serial consoles."""

    def pre_live_migration(
            self, context: Any, instance: Any, block_device_info: Any,
            network_info: Any, disk_info: Any, migrate_data: Any) -> Any:
        """Reserve the ports and begin the logs, at the destination."""
        with self._arrivals.without_novas_ports(migrate_data) as address:
            data = super().pre_live_migration(
                context, instance, block_device_info, network_info, disk_info,
                migrate_data)
        self._arrivals.prepare(instance, data, address)
        return data

    def _live_migration_operation(
            self, context: Any, instance: Any, dest: str, block_migration: Any,
            migrate_data: Any, guest: Any, device_names: Any) -> None:
        """Rewrite the guest's XML for its destination, at the source."""
        self._histories.wait_for_history(instance)
        guest = nova_edge.departing(guest, self._source.prepare(
            context, instance, dest, migrate_data))
        super()._live_migration_operation(
            context, instance, dest, block_migration, migrate_data, guest,
            device_names)
        self._source.left(instance.uuid)

    def post_live_migration_at_source(self, context: Any, instance: Any,
                                      network_info: Any) -> None:
        """Keep the log of a guest whose directory nova deletes next."""
        self._source.undefined(instance.uuid)
        self._histories.gone(instance.uuid)
        try:
            super().post_live_migration_at_source(
                context, instance, network_info)
        finally:
            self._source.left(instance.uuid)

    def post_live_migration_at_destination(
            self, context: Any, instance: Any, *args: Any,
            **kwargs: Any) -> None:
        """Put in place the history that the source sends."""
        super().post_live_migration_at_destination(
            context, instance, *args, **kwargs)
        self._histories.arrived(instance, running=True)

    def rollback_live_migration_at_source(
            self, context: Any, instance: Any, migrate_data: Any) -> None:
        """Undo what was begun elsewhere for a guest that has stayed."""
        super().rollback_live_migration_at_source(
            context, instance, migrate_data)
        self._source.stayed(instance, migrate_data)

    # Resize, cold migration, revert, rebuild: the history goes along

    def migrate_disk_and_power_off(self, context: Any, instance: Any,
                                   dest: str, flavor: Any, *args: Any,
                                   **kwargs: Any) -> Any:
        with nova_edge.rolled_back():
            self._moves.check(instance, flavor, dest, self.get_host_ip_addr())
        self._histories.wait_for_history(instance)
        disk_info = super().migrate_disk_and_power_off(
            context, instance, dest, flavor, *args, **kwargs)
        self._moves.leave(context, instance, dest, self.get_host_ip_addr())
        return disk_info

    def finish_migration(self, context: Any, migration: Any, instance: Any,
                         *args: Any, **kwargs: Any) -> None:
        self._moves.arrive(context, instance, migration)
        super().finish_migration(context, migration, instance, *args,
                                 **kwargs)
        self._histories.arrived(instance)

    def confirm_migration(self, context: Any, migration: Any, instance: Any,
                          network_info: Any) -> None:
        """Keep what the other host lacks: nova deletes the directory."""
        self._moves.confirm(instance)
        super().confirm_migration(context, migration, instance, network_info)

    def finish_revert_migration(self, context: Any, instance: Any,
                                network_info: Any, migration: Any,
                                *args: Any, **kwargs: Any) -> None:
        """Bring back what the guest wrote on the other host."""
        self._moves.come_back(instance, migration)
        super().finish_revert_migration(
            context, instance, network_info, migration, *args, **kwargs)

    def cleanup(self, context: Any, instance: Any, network_info: Any,
                block_device_info: Any = None, destroy_disks: bool = True,
                *args: Any, **kwargs: Any) -> None:
        """Keep what is to stay, while nova deletes the directory."""
        with self._moves.saved(context, instance, destroy_disks):
            super().cleanup(context, instance, network_info,
                            block_device_info, destroy_disks, *args, **kwargs)

    def delete_instance_files(self, instance: Any) -> Any:
        """Keep the log of a guest that is gone, if that is wished."""
        self._histories.deletions.files(instance)
        return super().delete_instance_files(instance)
