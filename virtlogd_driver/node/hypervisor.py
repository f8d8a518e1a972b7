# SPDX-License-Identifier: Apache-2.0
"""libvirt tells of this host and its guests, the kernel of its addresses.

libvirt's errors become this project's here, and nowhere else.
"""

import contextlib
import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import libvirt

from virtlogd_driver import exception
from virtlogd_driver.guest import char_device

Version = tuple[int, int, int]

#: <log> of a character device (libvirt's formatdomain documentation).
MIN_LIBVIRT_VERSION: Version = (1, 3, 3)
#: chardev logfile, free of https://bugs.launchpad.net/qemu/+bug/1599214.
MIN_QEMU_VERSION: Version = (2, 7, 0)
#: Sizes such as "2MiB" in virtlogd.conf (libvirt's NEWS).
QUOTED_SIZES: Version = (12, 8, 0)
#: libvirt's daemon runs, and does not take this user.
_REFUSED = frozenset({
    libvirt.VIR_ERR_ACCESS_DENIED, libvirt.VIR_ERR_AUTH_CANCELLED,
    libvirt.VIR_ERR_AUTH_FAILED, libvirt.VIR_ERR_AUTH_UNAVAILABLE})


@dataclass(frozen=True, slots=True)
class ConsoleCapability:
    """The log and the serial console at once depend on these."""

    libvirt: Version
    qemu: Version
    #: "logd", "file" or "unknown", as qemu.conf has it.
    stdio_handler: str

    @property
    def shortcoming(self) -> str | None:
        """Tell why a guest cannot have both, or None where it can."""
        if self.libvirt < MIN_LIBVIRT_VERSION:
            return (f'libvirt {_dotted(self.libvirt)} is older than '
                    f'{_dotted(MIN_LIBVIRT_VERSION)}')
        if self.qemu < MIN_QEMU_VERSION:
            return (f'QEMU {_dotted(self.qemu)} is older than '
                    f'{_dotted(MIN_QEMU_VERSION)}')
        if self.stdio_handler == 'file':
            return ('stdio_handler is "file" in qemu.conf, which lets logs '
                    'grow without bound: set it to "logd"')
        return None

    @property
    def capable(self) -> bool:
        """Check that a guest can have both consoles."""
        return self.shortcoming is None

    def __str__(self) -> str:
        return (f'libvirt {_dotted(self.libvirt)}, QEMU {_dotted(self.qemu)}, '
                f'stdio handler {self.stdio_handler}: '
                + (self.shortcoming or 'log and interactive console at once'))


def _dotted(version: Version) -> str:
    return '.'.join(map(str, version))


def _version(number: int) -> Version:
    """Split libvirt's 1,000,000 x major + 1,000 x minor + release."""
    return number // 1_000_000, number // 1_000 % 1_000, number % 1_000


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn libvirt's errors into this project's.

    :raises GuestNotFound: the domain is gone
    :raises HostError: anything else that libvirt raises
    """
    try:
        yield
    except libvirt.libvirtError as e:
        if e.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            raise exception.GuestNotFound(str(e)) from e
        raise exception.HostError(
            f'libvirt could not be asked: {e}. {_remedy(e)}') from e


def _remedy(error: libvirt.libvirtError) -> str:
    # A socket that may not be connected to has no code of its own.
    if error.get_error_code() in _REFUSED or (
            error.get_error_domain() == libvirt.VIR_FROM_RPC
            and error.get_int1() == errno.EACCES):
        return ('It refuses this user: be root, or a member of the group '
                'libvirt.')
    return 'Check that libvirtd (or virtqemud) is running.'


def connect(uri: str) -> libvirt.virConnect:
    """Open a connection, for a command; the driver has nova's.

    :raises HostError: libvirt does not answer
    """
    # Each error is raised; libvirt would also print it.
    libvirt.registerErrorHandler(lambda *_: None, None)
    with translated():
        return libvirt.open(uri)


def console_capability(connection: libvirt.virConnect,
                       stdio_handler: str) -> ConsoleCapability:
    """Ask a connection for the versions behind it.

    :raises HostError: it does not answer; this is never "too old"
    """
    with translated():
        return ConsoleCapability(_version(connection.getLibVersion()),
                                 _version(connection.getVersion()),
                                 stdio_handler)


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest is a domain as it was when it was looked at."""

    uuid: str
    name: str
    active: bool
    #: "running", "paused", "shut off", as virsh says it; "unknown".
    state: str
    xml: str
    #: Why libvirt tells neither state nor XML; empty: it does.
    unclear: str = ''

    def devices(self) -> tuple[char_device.CharDevice, ...]:
        """Give its character devices: see char_device.parse.

        :raises InvalidGuestXML: they are not known, and why
        """
        if self.unclear:
            raise exception.InvalidGuestXML(self.unclear)
        return char_device.parse(self.xml)


_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: 'running',
    libvirt.VIR_DOMAIN_BLOCKED: 'blocked',
    libvirt.VIR_DOMAIN_PAUSED: 'paused',
    libvirt.VIR_DOMAIN_SHUTDOWN: 'in shutdown',
    libvirt.VIR_DOMAIN_SHUTOFF: 'shut off',
    libvirt.VIR_DOMAIN_CRASHED: 'crashed',
    libvirt.VIR_DOMAIN_PMSUSPENDED: 'pmsuspended',
}


def guest_uuids(connection: libvirt.virConnect) -> list[str]:
    """Give the guests of the host, running or not.

    :raises HostError: libvirt does not answer
    """
    with translated():
        return [domain.UUIDString() for domain in connection.listAllDomains()]


def guests_run(connection: libvirt.virConnect) -> dict[str, bool]:
    """Tell whether each guest of the host runs, by UUID; two calls for all.

    :raises HostError: libvirt does not answer
    """
    found: dict[str, bool] = {}
    for flag, runs in ((libvirt.VIR_CONNECT_LIST_DOMAINS_INACTIVE, False),
                       (libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE, True)):
        with translated():
            for domain in connection.listAllDomains(flag):
                found[domain.UUIDString()] = runs
    return found


def find_guest(connection: libvirt.virConnect, uuid: str) -> libvirt.virDomain:
    """Give a guest by its UUID.

    :raises GuestNotFound: it is gone
    :raises HostError: libvirt does not answer
    """
    with translated():
        return connection.lookupByUUIDString(uuid)


def list_guests(connection: libvirt.virConnect) -> list[Guest]:
    """Give every guest of the host, running or not.

    A guest that goes away meanwhile is left out. One that libvirt fails for,
    as where another job has it for long, takes nothing from the others.

    :raises HostError: libvirt does not answer
    """
    with translated():
        domains = connection.listAllDomains()
    found: list[Guest] = []
    for domain in domains:
        with contextlib.suppress(exception.GuestNotFound), translated():
            try:
                found.append(Guest(
                    domain.UUIDString(), domain.name(),
                    bool(domain.isActive()),
                    _STATES.get(domain.state()[0], 'unknown'),
                    domain.XMLDesc()))
            except libvirt.libvirtError as e:
                if (e.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN
                        or not connection.isAlive()):
                    raise
                found.append(Guest(
                    domain.UUIDString(), domain.name(), True, 'unknown', '',
                    f'libvirt fails for it: {e}'))
    return found


#: Why a guest is in a state, where it was not booted to get there.
_NOT_BOOTED = {
    libvirt.VIR_DOMAIN_RUNNING: {
        libvirt.VIR_DOMAIN_RUNNING_MIGRATED,
        libvirt.VIR_DOMAIN_RUNNING_RESTORED,
        libvirt.VIR_DOMAIN_RUNNING_FROM_SNAPSHOT},
    libvirt.VIR_DOMAIN_PAUSED: {
        libvirt.VIR_DOMAIN_PAUSED_MIGRATION,
        libvirt.VIR_DOMAIN_PAUSED_SAVE,
        libvirt.VIR_DOMAIN_PAUSED_FROM_SNAPSHOT},
}


def is_booted(domain: libvirt.virDomain) -> bool:
    """Tell whether a running guest was started, as far as can be known.

    False where it goes on from where it was: it is migrated here, or restored.

    :raises libvirtError: it is gone, or libvirt does not answer
    """
    state, reason = domain.state()
    return reason not in _NOT_BOOTED.get(state, ())


def booted_xml(connection: libvirt.virConnect, uuid: str) -> str | None:
    """Give the domain XML of a guest that libvirt has just started.

    None where it goes on from where it was: it is migrated here, or restored.

    :raises GuestNotFound: it is gone
    :raises HostError: libvirt does not answer
    """
    with translated():
        domain = connection.lookupByUUIDString(uuid)
        if not is_booted(domain):
            return None
        xml: str = domain.XMLDesc()
    return xml


def is_free(address: str, port: int) -> bool:
    """Tell whether a TCP port can be listened on; port 0 asks for the address.

    As QEMU listens: where a name has several addresses on each of them that
    this host has; on ``::`` for IPv4 as well; with reuse, so that a
    connection that lingers in TIME-WAIT does not make a port busy. One that
    is root's alone is as good as busy.

    :raises InvalidAddress: the address does not resolve, or is not ours
    """
    try:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM,
                                   flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as e:
        raise exception.InvalidAddress(
            f'[serial_console] proxyclient_address = {address!r} does not '
            f'resolve ({getattr(e, "strerror", None) or e}): set it to an '
            'address of this host.') from e
    refused = [error for family, kind, protocol, _, sockaddr in found
               if (error := _bind_error(family, kind, protocol, sockaddr))]
    if any(error.errno in (errno.EADDRINUSE, errno.EACCES)
           for error in refused):
        return False
    if len(refused) == len(found):
        raise exception.InvalidAddress(
            f'[serial_console] proxyclient_address = {address!r} cannot '
            f'be listened on ({refused[0].strerror}): set it to an address '
            'of this host, or wait until it has this one.') from refused[0]
    return True


def _bind_error(family: int, kind: int, protocol: int,
                sockaddr: Any) -> OSError | None:
    """Tell why an address and port cannot be bound; None: they can."""
    try:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            probe.bind(sockaddr)
    except OSError as e:
        return e
    return None


def runs(connection: libvirt.virConnect, uuid: str) -> bool:
    """Tell whether a guest runs; one that is gone does not.

    :raises HostError: libvirt does not answer
    """
    try:
        with translated():
            return bool(connection.lookupByUUIDString(uuid).isActive())
    except exception.GuestNotFound:
        return False
