# SPDX-License-Identifier: Apache-2.0
"""The watch reads the health of virtlogd and of guests' logs on a real host.

Here libvirt, the daemon's room and the metrics come together; the driver and
the status command use it.
"""

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from virtlogd_driver import exception
from virtlogd_driver.guest import char_device
from virtlogd_driver.node import hypervisor, metrics
from virtlogd_driver.virtlogd import health, periodic, reattach
from virtlogd_driver.virtlogd.bounded import Run, direct
from virtlogd_driver.virtlogd.disk import DISKS, Disks
from virtlogd_driver.virtlogd.port import Address, Port, numeric


@dataclass(frozen=True, slots=True)
class Relay:
    """The relay has two sides, each a numeric address of this host."""

    #: Where guests listen that are relayed.
    inner: str
    #: Where it listens for their viewers.
    outer: str


def list_ports(connection: Any, run: Run[Any] = direct,
               off: bool = False, relay: Relay | None = None) -> list[Port]:
    """Give the serial ports of all running guests.

    A guest whose XML cannot be understood has one, which says so.

    :param connection: to libvirt
    :param run: runs what blocks in libvirt
    :param off: those of guests that do not run as well
    :param relay: what consoles the relay is to be at; None: none, or it is
        not known
    :raises HostError: libvirt does not answer
    """
    found: list[Port] = []
    for guest in run(hypervisor.list_guests, connection):
        if guest.active or off:
            try:
                found += ports_of(guest, relay)
            except exception.InvalidGuestXML as e:
                found.append(Port(guest.uuid, guest.name, 0, None,
                                  active=guest.active, unclear=str(e),
                                  failing=True))
    return found


def ports_of(guest: hypervisor.Guest,
             relay: Relay | None = None) -> list[Port]:
    """Give the serial ports of a guest.

    :param relay: as of :func:`list_ports`
    :raises InvalidGuestXML: its XML cannot be understood
    """
    return [Port(guest.uuid, guest.name, device.number, device.log_file,
                 None if device.address is None
                 else numeric(*device.address), _pty(device), guest.active,
                 device.unclear, _relay_of(device, relay))
            for device in guest.devices()]


def _relay_of(device: char_device.CharDevice,
              relay: Relay | None) -> Address | None:
    """Tell where the relay listens for a port: at the same TCP port."""
    if (relay is None or device.address is None
            or device.address[0] != relay.inner):
        return None
    return numeric(relay.outer, device.address[1])


def _pty(device: char_device.CharDevice) -> str | None:
    return (device.source.path
            if device.type == 'pty' and device.source is not None else None)


def reattach_log(connection: Any, port: Port,
                 socket_path: str, timeout: float,
                 run: Run[Any] = direct, disks: Disks = DISKS) -> str:
    """Bring the lost log of a guest's serial port back.

    :param connection: to libvirt, on this host
    :param timeout: seconds for virtlogd to answer each time
    :param run: runs what blocks in libvirt
    :param disks: asks file systems
    :returns: what an operator should know, or an empty string
    :raises GuestNotFound: the guest is gone
    :raises HostError: libvirt does not answer
    :raises VirtlogdError: it cannot be done; the guest is as it was
    """
    if port.log is None:
        raise exception.ReattachFailed(f'{port} has no log.')
    domain = run(hypervisor.find_guest, connection, port.guest)
    return reattach.reattach(domain, port.log, socket_path, timeout, run,
                             disks)


def health_task(get_connection: Callable[[], Any],
                settings: periodic.Settings, heal: bool = False,
                metrics_file: str | None = None,
                run: Run[Any] = direct,
                relay: Callable[[], Relay | None] = lambda: None,
                clean: Callable[[Disks], None] | None = None,
                kept: Callable[[Disks], metrics.Kept | None] | None = None
                ) -> periodic.HealthTask:
    """Give what watches this host, not yet started.

    :param get_connection: a libvirt connection; HostError where there is none
    :param heal: bring dead logs back
    :param metrics_file: for Prometheus; None: no metrics
    :param run: runs what blocks in libvirt, or in a look-up of a name
    :param relay: tells what consoles the relay is to be at
    :param clean: removes what each pass is to remove, asking file systems by
        what it is given
    :param kept: tells what is kept of deleted guests, likewise; DiskStalled
        where that is not known
    """
    def bring_back(port: Port) -> str:
        return reattach_log(get_connection(), port, settings.socket_path,
                            settings.timeout, run, disks)

    def publish(report: health.Report, totals: periodic.Totals) -> None:
        if metrics_file:
            stock = None
            if kept is not None:
                with contextlib.suppress(exception.DiskStalled):
                    stock = kept(disks)
            disks.ask(metrics_file, metrics.write, metrics_file, report,
                      totals, stock)

    disks = Disks(run)
    return periodic.HealthTask(
        settings, lambda: list_ports(get_connection(), run, off=True,
                                     relay=run(relay)),
        bring_back if heal else None, publish if metrics_file else None,
        disks, None if clean is None else functools.partial(clean, disks))
