# SPDX-License-Identifier: Apache-2.0
"""The compute driver: nova's libvirt driver, with better consoles.

Each override says in a few lines what differs from nova and calls the room
that knows how. This is the only module that imports nova.
"""

import contextlib
import os
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import nova.conf
from nova import exception as nova_exception
from nova import version as nova_version
from nova.console import type as ctype
from nova.virt import hardware
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import utils as libvirt_utils
from oslo_log import log as logging

from virtlogd_driver import conf, exception, host
from virtlogd_driver.console_log import generation, reader
from virtlogd_driver.guest import char_device, plan, serial_port
from virtlogd_driver.virtlogd import settings

LOG = logging.getLogger(__name__)
CONF = nova.conf.CONF
conf.register_opts(CONF)


class VirtlogdDriver(libvirt_driver.LibvirtDriver):
    """nova's libvirt driver with a log and an interactive console at once."""

    _capability: host.ConsoleCapability | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        LOG.info('Compute driver virtlogd_driver %s on nova %s',
                 metadata.version('virtlogd-driver'),
                 nova_version.version_string())
        with _nova_errors():
            self._ports = serial_port.PortPool(
                serial_port.PortRange.parse(CONF.serial_console.port_range),
                host.is_free)

    # The host

    def init_host(self, host: str) -> None:  # noqa: D102
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
