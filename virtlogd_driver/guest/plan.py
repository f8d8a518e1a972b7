# SPDX-License-Identifier: Apache-2.0
"""A table decides which serial devices a guest gets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from virtlogd_driver import exception
from virtlogd_driver.guest.char_device import (
    CharDevice,
    Log,
    Source,
    Tag,
    Target,
)

Backend = Literal['tcp', 'pty', 'file']


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine can have these serial ports."""

    tag: Tag
    max_ports: int
    #: Target types of port 0 and of the others; None is libvirt's default.
    first_target: str | None = None
    other_target: str | None = None


_X86 = Machine('serial', 4)
#: One UART on the board; QEMU takes more and connects them to nothing.
_ONE_UART = Machine('serial', 4, None, 'pci-serial')
#: No serial ports. One SCLP console, which firmware and early kernel write
#: to, and virtio consoles, of which a controller takes 31.
_S390 = Machine('console', 32, 'sclp', 'virtio')

#: Measured with libvirt 9.0.0 and QEMU 7.2 (define and start); an
#: architecture that is not listed gets what nova gives it, up to four.
MACHINES = {
    'aarch64': _ONE_UART, 'riscv64': _ONE_UART,
    's390': _S390, 's390x': _S390,
}


def machine(architecture: str) -> Machine:
    """Give the serial ports of machines of this architecture."""
    return MACHINES.get(architecture, _X86)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsolePlan:
    """A plan says what a guest's serial ports are; see :func:`plan`."""

    machine: Machine
    backend: Backend
    logged: bool
    ports: int
    with_pty: bool = False

    def devices(self, log_files: Sequence[str], address: str | None = None,
                tcp_ports: Sequence[int] = ()) -> tuple[CharDevice, ...]:
        """Give the devices of the plan, port 0 first.

        :param log_files: path of each port's log, one a port
        :param address: where TCP ports listen
        :param tcp_ports: the TCP port of each serial port, if any listens
        """
        made = [self._device(port, log_files[port], address,
                             tcp_ports[port] if tcp_ports else None)
                for port in range(self.ports)]
        if self.with_pty:
            made.append(CharDevice(tag=self.machine.tag, type='pty',
                                   target=self._target(self.ports)))
        return tuple(made)

    def _device(self, port: int, log_file: str, address: str | None,
                tcp_port: int | None) -> CharDevice:
        source = None
        if self.backend == 'tcp':
            source = Source(mode='bind', host=address, service=tcp_port)
        elif self.backend == 'file':
            source = Source(path=log_file, append=True)
        return CharDevice(
            tag=self.machine.tag, type=self.backend, source=source,
            log=Log(log_file) if self.logged else None,
            target=self._target(port))

    def _target(self, port: int) -> Target:
        return Target(port, self.machine.other_target if port
                      else self.machine.first_target)


def check_port_count(ports: int, architecture: str) -> None:
    """Refuse what no machine of this architecture can have.

    :raises TooManySerialPorts: naming where the number comes from
    """
    allowed = machine(architecture).max_ports
    if not 0 < ports <= allowed:
        raise exception.TooManySerialPorts(
            f'{ports} serial ports are asked for, a machine of architecture '
            f'{architecture} has 1 to {allowed}: change hw:serial_port_count '
            f'of the flavor or hw_serial_port_count of the image.')


def plan(*, capable: bool, serial_console: bool, fallback: Backend,
         architecture: str, ports: int,
         container: bool = False) -> ConsolePlan:
    """Decide which serial ports a guest gets: the decision table.

    ======== ============== ======== =======================================
    capable  serial_console fallback the guest gets
    ======== ============== ======== =======================================
    yes      on                      n x tcp, each with a log
    yes      off                     one pty with a log
    no       on             file     n x file: log only
    no       on             tcp      n x tcp: interactive only
    no       off                     one file: log; and one pty beside it
    ======== ============== ======== =======================================

    Each log and each file is appended to. The devices are ``<serial>``, on
    s390x ``<console>`` (:data:`MACHINES`). A container has one ``<console>``
    pty, with a log where the host is capable.

    :param capable: libvirt, QEMU and the stdio handler can have both
    :param serial_console: nova's ``[serial_console] enabled``
    :param fallback: ``[virtlogd] fallback_device``
    :param architecture: of the guest, as in the domain's ``<type arch>``
    :param ports: n, the ports that flavor and image ask for
    :param container: the guest is an LXC container
    :raises TooManySerialPorts: more than the machine has
    """
    if container:
        return ConsolePlan(machine=Machine('console', 1), backend='pty',
                           logged=capable, ports=1)
    backend: Backend
    if serial_console:
        check_port_count(ports, architecture)
        backend = 'tcp' if capable else fallback
    else:
        ports = 1
        backend = 'pty' if capable else 'file'
    return ConsolePlan(
        machine=machine(architecture), backend=backend, logged=capable,
        ports=ports, with_pty=not capable and not serial_console)
