# SPDX-License-Identifier: Apache-2.0
"""The kernel tells of each TCP connection to a guest's serial port.

A viewer that does not read stops the guest's output, and with it the log,
once the socket's buffer is full. The kernel says exactly whether it is, and
since when nothing was sent (linux/inet_diag.h, linux/tcp.h); asking needs no
privilege, disconnecting needs CAP_NET_ADMIN.
"""

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from virtlogd_driver import exception
from virtlogd_driver.virtlogd import sock_diag
from virtlogd_driver.virtlogd.port import Address

#: A viewer that took nothing for so many seconds is stuck; one that is
#: stuck for less is not disconnected, whoever asks for it.
STUCK_AFTER = 10.0

_INET_DIAG_INFO, _INET_DIAG_SKMEMINFO = 2, 7

_REQUEST = struct.Struct('=BBBxI48s')
_ADDRESSES = struct.Struct('!HH16s16s')
_SOCKET = struct.Struct('=BBxx48s20x')
#: tcp_info: tcpi_last_data_sent, in milliseconds.
_LAST_DATA_SENT = struct.Struct('=44xI')
#: sock_diag.h, SK_MEMINFO_*: sndbuf and wmem_queued, in bytes.
_MEMORY = struct.Struct('=12xI4xI')


@dataclass(frozen=True, slots=True)
class Viewer:
    """A viewer is connected to a serial port of a guest."""

    #: The guest's side: address and port.
    local: Address
    #: The viewer's side.
    peer: Address
    #: Seconds since anything was sent to it.
    silent: float
    #: Its buffer is full: the guest's output waits for it.
    full: bool
    #: The kernel's own name for the socket (inet_diag_sockid).
    socket_id: bytes

    def stuck(self, seconds: float) -> bool:
        """Tell whether it has stopped the guest's output for so long."""
        return self.full and self.silent >= seconds


def _address(family: int, data: bytes) -> str:
    if family == socket.AF_INET:
        return str(ipaddress.IPv4Address(data[:4]))
    address = ipaddress.IPv6Address(data)
    return str(address.ipv4_mapped or address)


def _viewer(payload: bytes) -> Viewer | None:
    family, _, socket_id = _SOCKET.unpack_from(payload)
    attributes = sock_diag.attributes(payload[_SOCKET.size:])
    if not {_INET_DIAG_INFO, _INET_DIAG_SKMEMINFO} <= attributes.keys():
        return None
    local_port, peer_port, local, peer = _ADDRESSES.unpack_from(socket_id)
    (silent,) = _LAST_DATA_SENT.unpack_from(attributes[_INET_DIAG_INFO])
    buffer, queued = _MEMORY.unpack_from(attributes[_INET_DIAG_SKMEMINFO])
    return Viewer(
        (_address(family, local), local_port),
        (_address(family, peer), peer_port), silent / 1000,
        # What sk_stream_is_writable (net/sock.h) says no to.
        buffer - queued < queued // 2,
        bytes((family,)) + socket_id)


_ANYWHERE = ('0.0.0.0', '::')  # noqa: S104


def _matches(listener: Address, local: Address) -> bool:
    return listener[1] == local[1] and (
        listener[0] == local[0] or listener[0] in _ANYWHERE)


def is_at(viewer: Viewer, listener: Address) -> bool:
    """Tell whether a viewer is connected to a serial port.

    :param listener: the address, numeric, that the guest listens on
    """
    return _matches(listener, viewer.local)


def _sockets(states: int, attributes: int) -> Iterator[bytes]:
    """Give the TCP sockets of this host in some states."""
    for family in (socket.AF_INET, socket.AF_INET6):
        request = _REQUEST.pack(family, socket.IPPROTO_TCP, attributes,
                                states, bytes(48))
        for error, payload in sock_diag.ask(
                sock_diag.BY_FAMILY, sock_diag.NLM_F_DUMP, request):
            if error is None:
                yield payload
            # Without IPv6 there is none of it.
            elif error.errno != errno.ENOENT or family == socket.AF_INET:
                raise error


def viewers(listeners: Iterable[Address]) -> list[Viewer]:
    """Tell who is connected to these serial ports of guests.

    :param listeners: the addresses, numeric, that the guests listen on
    :raises OSError: the kernel has no sock_diag
    """
    by_port: dict[int, list[Address]] = {}
    for listener in listeners:
        by_port.setdefault(listener[1], []).append(listener)
    found: list[Viewer] = []
    if not by_port:
        return found
    states = 1 << sock_diag.ESTABLISHED | 1 << sock_diag.CLOSE_WAIT
    wanted = 1 << _INET_DIAG_INFO - 1 | 1 << _INET_DIAG_SKMEMINFO - 1
    for payload in _sockets(states, wanted):
        viewer = _viewer(payload)
        if viewer is not None and any(
                _matches(listener, viewer.local)
                for listener in by_port.get(viewer.local[1], ())):
            found.append(viewer)
    return found


def listening(listeners: Iterable[Address]) -> set[Address]:
    """Tell which of these serial ports of guests are listened on.

    :param listeners: the addresses, numeric
    :raises OSError: the kernel has no sock_diag
    """
    wanted = set(listeners)
    if not wanted:
        return set()
    by_number: dict[int, list[Address]] = {}
    for payload in _sockets(1 << sock_diag.LISTEN, 0):
        family, _, socket_id = _SOCKET.unpack_from(payload)
        number, _, address, _ = _ADDRESSES.unpack_from(socket_id)
        by_number.setdefault(number, []).append(
            (_address(family, address), number))
    return {listener for listener in wanted
            if any(_matches(listener, bound) or _matches(bound, listener)
                   for bound in by_number.get(listener[1], ()))}


def disconnect(socket_id: bytes) -> None:
    """End a connection, as if the viewer had reset it.

    :param socket_id: of a Viewer; another socket with the same addresses is
        left alone
    :raises VirtlogdDriverError: the kernel refuses; one that is gone is fine
    """
    request = _REQUEST.pack(socket_id[0], socket.IPPROTO_TCP, 0,
                            0xffffffff, socket_id[1:])
    for error, _ in sock_diag.ask(
            sock_diag.DESTROY, sock_diag.NLM_F_ACK, request):
        if error is None or error.errno == errno.ENOENT:
            return
        raise exception.VirtlogdDriverError(
            f'A viewer could not be disconnected ({error.strerror}): that '
            'takes CAP_NET_ADMIN, as root has it, and a kernel with '
            'CONFIG_INET_DIAG_DESTROY. Close the connection at its other '
            'end.') from error
