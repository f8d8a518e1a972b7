# SPDX-License-Identifier: Apache-2.0
"""Guests of this host get consoles, and nova gets its answers about them.

The serial devices of a guest, the TCP ports and logs of these, and the answers
to nova's questions for the console log and the interactive console.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from nova import exception as nova_exception
from nova.console import type as ctype
from nova.virt import hardware
from nova.virt.libvirt.utils import get_instance_path
from oslo_log import log as logging

from virtlogd_driver import exception
from virtlogd_driver.compute.device_cache import DeviceCache
from virtlogd_driver.compute.options import Options
from virtlogd_driver.console_log import generation, reader
from virtlogd_driver.guest import char_device, plan, serial_port
from virtlogd_driver.guest.plan import ConsolePlan
from virtlogd_driver.history import files, history, logs
from virtlogd_driver.node import hypervisor
from virtlogd_driver.virtlogd import conf_files

LOG = logging.getLogger(__name__)

#: Bytes of a domain's XML.
_LONGEST_XML = 1 << 22


def live_log(directory: str, port: int = 0) -> str:
    """Path of the log that the next start of a guest appends to.

    :param directory: path of the instance directory; it may be missing
    :param port: serial port, from 0
    :raises LogError: the directory cannot be listed
    """
    try:
        number = logs.live_generation(directory, port)
    except OSError as e:
        raise exception.LogError(
            f'{directory} cannot be listed ({e.strerror}): see to the file '
            f'system that it is on.') from e
    return os.path.join(directory, generation.live_name(port, number))


@contextlib.contextmanager
def beginning(directory: str) -> Iterator[None]:
    """Say of a guest's logs why they cannot be begun in the block.

    :param directory: path of the instance directory
    :raises LogNotBegun: why, and what to do
    """
    try:
        yield
    except exception.LogError as e:
        raise exception.LogNotBegun(f'The guest is not started: {e}') from e
    except OSError as e:
        raise exception.LogNotBegun(
            f'The guest is not started: its console log '
            f'{e.filename or directory} cannot be made ({e.strerror}), so '
            f'virtlogd could not write it either. Make room on the file '
            f'system of {directory}, or mend it, and try again.') from e


class Consoles:
    """The consoles of this host's guests are planned and read here."""

    def __init__(self, options: Options, connection: Callable[[], Any],
                 domain_xml: Callable[[Any], str],
                 architecture: Callable[[Any], str]) -> None:
        """
        :param connection: gives the libvirt connection; HostError where there
            is none
        :param domain_xml: gives the domain XML of one of nova's instances;
            InstanceNotFound where there is no such domain
        :param architecture: gives the machine's architecture that nova chooses
            for an image
        :raises InvalidOption: port_range is none
        """
        self._options = options
        self._connection = connection
        self._domain_xml = domain_xml
        self._architecture = architecture
        self._capability: hypervisor.ConsoleCapability | None = None
        self._devices = DeviceCache()
        #: Which guest holds which TCP port, on the address that its viewers
        #: connect to.
        self.ports = serial_port.PortPool(
            serial_port.PortRange.parse(options.port_range), self._is_free,
            self._is_clear if options.guest_address
            != options.proxyclient_address else None)

    def _is_free(self, address: str, port: int) -> bool:
        """Whether a guest can be given a TCP port.

        :raises InvalidAddress: it cannot listen on its address
        """
        if address == self._options.proxyclient_address:
            # The relay lets go of a port a moment after its guest.
            address = self._options.guest_address
        return hypervisor.is_free(address, port)

    def _is_clear(self, address: str, port: int) -> bool:
        """Whether nobody is in the way of the relay there, either.

        The relay itself is, until it lets go of the port of a guest that was.

        :raises InvalidAddress: a guest cannot listen on its address
        """
        if not self._is_free(address, port):
            return False
        with contextlib.suppress(exception.InvalidAddress):
            return hypervisor.is_free(address, port)
        # Nobody, as nobody has the address yet.
        return True

    def capability(self) -> hypervisor.ConsoleCapability:
        """What this host can do; it is looked at anew each time, and logged
        when it has changed.

        :raises HostError: libvirt does not answer
        """
        found = hypervisor.console_capability(
            self._connection(), conf_files.stdio_handler(
                self._options.virtlogd.qemu_conf))
        if found != self._capability:
            log = LOG.info if found.capable else LOG.warning
            log('Guest consoles: %s', found)
            self._capability = found
        return found

    def plan(self, flavor: Any, image_meta: Any) -> ConsolePlan:
        """Which serial devices a guest is to have.

        :param flavor: nova's Flavor
        :param image_meta: nova's ImageMeta
        :raises TooManySerialPorts: flavor and image ask for more than the
            machine has
        :raises HostError: libvirt does not answer
        """
        return plan.plan(
            capable=self.capability().capable,
            serial_console=self._options.serial_console,
            fallback=self._options.virtlogd.fallback_device,
            architecture=self._architecture(image_meta),
            ports=hardware.get_number_of_serial_ports(flavor, image_meta),
            container=self._options.virt_type == 'lxc')

    def devices(self, instance: Any, flavor: Any, image_meta: Any
                ) -> tuple[char_device.CharDevice, ...]:
        """The devices of a guest that is about to be defined.

        Its TCP ports are reserved and the first file of each log is made.

        :param flavor: nova's Flavor
        :param image_meta: nova's ImageMeta
        :returns: none under Parallels, as nova's own driver does
        :raises TooManySerialPorts: flavor and image ask for more than the
            machine has
        :raises PortRangeExhausted: there are not enough free TCP ports
        :raises InvalidAddress: nothing can listen on proxyclient_address
        :raises LogNotBegun: there is no room for a log, say
        """
        if self._options.virt_type == 'parallels':
            return ()
        wanted = self.plan(flavor, image_meta)
        directory = get_instance_path(instance)
        with beginning(directory):
            log_files = [live_log(directory, port)
                         for port in range(wanted.ports)]
            history.begin_logs(log_files)
        if wanted.backend != 'tcp':
            return wanted.devices(log_files)
        return wanted.devices(
            log_files, self._options.guest_address, self.ports.acquire(
                instance.uuid, self._options.proxyclient_address,
                wanted.ports,
                hypervisor.runs(self._connection(), instance.uuid)))

    def serial_ports(self, instance: Any
                     ) -> tuple[char_device.CharDevice, ...]:
        """The serial devices of an instance's domain, port 0 first.

        They are remembered until something happens to the guest.

        :raises InstanceNotFound: nova's, there is no such domain
        :raises InvalidGuestXML: its XML cannot be understood
        :raises HostError: libvirt does not answer
        """
        def look() -> tuple[char_device.CharDevice, ...]:
            with hypervisor.translated():
                return char_device.parse(self._domain_xml(instance))

        return self._devices.get(instance.uuid, look)

    def output(self, instance: Any) -> bytes:
        """The newest bytes of a guest's first serial port.

        The log is where the domain says, whether it runs or not; where there
        is no domain (any more), it is where this driver puts it.

        :returns: at most max_console_bytes; none where the guest has not
            written its log yet
        :raises LogError: there is no log, or it cannot be read
        """
        named = self._named_log(instance)
        try:
            return reader.read_tail(
                named or live_log(get_instance_path(instance)),
                self._options.virtlogd.max_console_bytes,
                max_backups=conf_files.max_backups(
                    self._options.virtlogd.virtlogd_conf)).data
        except exception.LogNotFound:
            if named is None:
                raise
            self.changed(instance.uuid)
            LOG.info('The console log %s is not there, as the guest has '
                     'written nothing yet: its user is shown nothing',
                     named, instance=instance)
            return b''

    def _named_log(self, instance: Any) -> str | None:
        """The log that the domain names; None: it names none, or is gone."""
        with contextlib.suppress(nova_exception.InstanceNotFound,
                                 exception.GuestNotFound):
            for device in self.serial_ports(instance):
                return device.log_file
        return None

    def interactive(self, instance: Any) -> ctype.ConsoleSerial:
        """Address and TCP port for viewers of a guest's first serial port.

        :raises ConsoleTypeUnavailable: nova's, it has none, which is logged
        :raises InstanceNotFound: nova's, there is no such domain
        :raises InvalidGuestXML: its XML cannot be understood
        :raises HostError: libvirt does not answer
        """
        devices = self.serial_ports(instance)
        for address, port in char_device.addresses(devices):
            return ctype.ConsoleSerial(
                host=self._options.viewers_address(address), port=port)
        LOG.info('The guest has no interactive console: its serial ports are '
                 '%s. Guest consoles on this host: %s',
                 [device.type for device in devices], self._capability,
                 instance=instance)
        raise nova_exception.ConsoleTypeUnavailable(console_type='serial')

    def changed(self, uuid: str) -> None:
        """What is remembered of a guest's domain is looked up anew.

        Its logs are closed: files that are removed free their disk.
        """
        for device in self._devices.forget(uuid):
            if device.log_file is not None:
                reader.forget(os.path.dirname(device.log_file))

    def undefined(self, uuid: str) -> None:
        """A guest's domain is gone from this host: it holds no ports."""
        self.ports.release(uuid)
        self.changed(uuid)

    def adopt(self, guests: list[hypervisor.Guest]) -> dict[str, list[str]]:
        """Learn which guest holds which TCP port, after nova-compute starts.

        :param guests: all guests of this host
        :returns: the names of each guest's logs, by UUID
        """
        in_use = {}
        for guest in guests:
            try:
                devices = guest.devices()
            except exception.InvalidGuestXML as e:
                LOG.warning('The serial ports of guest %s are not known, so '
                            'its TCP ports could be given to another guest: '
                            '%s', guest.name, e)
                continue
            self.ports.adopt(guest.uuid, [
                (self._options.viewers_address(address), port)
                for address, port in char_device.addresses(
                    (*devices, *self._before_rescue(guest)))])
            in_use[guest.uuid] = char_device.log_names(devices)
        return in_use

    def _before_rescue(self, guest: hypervisor.Guest
                       ) -> tuple[char_device.CharDevice, ...]:
        """The devices that a guest gets back when it is unrescued.

        nova starts it with the XML that it had, which names its ports.
        """
        path = os.path.join(
            self._options.instances_path, guest.uuid, 'unrescue.xml')
        try:
            return char_device.parse(
                files.read(path, _LONGEST_XML).decode(errors='replace'))
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, exception.InvalidGuestXML) as e:
            LOG.warning('The TCP ports that guest %s had before it was '
                        'rescued are not known, so they could be given to '
                        'another guest: %s: %s', guest.name, path, e)
            return ()

    def release_unused(self, is_expected: Callable[[str], bool]) -> None:
        """Take back ports that were reserved for guests that never came.

        nova tells the destination of a failed migration only where there are
        files to delete. What goes wrong is said, and done the next time.

        :param is_expected: whether the guest with a UUID may still come
        """
        with history.errors_logged(
                None, 'TCP ports that no guest uses stay reserved'):
            self._release_unused(is_expected)

    def _release_unused(self, is_expected: Callable[[str], bool]) -> None:
        held = self.ports.owners()
        if not held:
            return
        held -= set(hypervisor.guest_uuids(self._connection()))
        for uuid in held:
            given = self.ports.given
            # A guest may have come while the database was asked, or be about
            # to: then it has just been given its ports.
            if not is_expected(uuid) and uuid not in hypervisor.guest_uuids(
                    self._connection()) and self.ports.release(uuid, given):
                LOG.info('Serial ports that were reserved for guest %s, '
                         'which is not here, are free again', uuid)
