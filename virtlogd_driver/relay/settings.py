# SPDX-License-Identifier: Apache-2.0
"""Checked values tell the relay what to do."""

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

from virtlogd_driver import exception

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Writers = Literal['all', 'first']

_OUTER = '[serial_console] proxyclient_address'
_INNER = '[virtlogd] relay_guest_address'
_ALLOWED = '[virtlogd] relay_allowed'


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The relay has these options; sizes in bytes, times in seconds."""

    #: Where viewers connect to: numeric.
    address: str
    #: Where guests listen: numeric, below 127/8.
    guest_address: str
    #: Who may connect, besides this host.
    allowed: tuple[Network, ...]
    #: Who may type.
    writers: Writers
    #: What waits for one viewer at most.
    buffer_size: int
    #: What a viewer is sent of what was written before it came, at most.
    context_size: int
    #: After how long a viewer that takes nothing is disconnected.
    viewer_timeout: float
    #: Most viewers of one serial port, and of all.
    port_viewers: int
    host_viewers: int

    def may_connect(self, peer: str) -> bool:
        """Tell whether a viewer with this numeric address is let in.

        This host itself always is: its own loopback, and the address that
        the relay listens on.
        """
        address = _address(peer)
        return (address.is_loopback or address == _address(self.address)
                or any(address in network for network in self.allowed))

    def with_addresses_of(self, other: Self) -> Self:
        """Give the same, listening where other settings say."""
        return replace(self, address=other.address,
                       guest_address=other.guest_address)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    found = ipaddress.ip_address(text.partition('%')[0])
    return getattr(found, 'ipv4_mapped', None) or found


def check_outer(text: str) -> str:
    """Tell where the relay is to listen: numeric.

    :param text: ``[serial_console] proxyclient_address``
    :raises InvalidAddress: it does not resolve
    :raises InvalidOption: it is every address of the host
    """
    try:
        numeric = str(socket.getaddrinfo(
            text, 0, type=socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError) as error:
        raise exception.InvalidAddress(
            f'{_OUTER} = {text!r} does not resolve '
            f'({getattr(error, "strerror", None) or error}): set it to an '
            'address of this host.') from error
    if _address(numeric).is_unspecified:
        raise exception.InvalidOption(
            _OUTER, text, 'the relay cannot listen on every address, as '
            'guests listen on the same ports of a loopback address; set it '
            'to the one address of this host that nova-serialproxy connects '
            'to')
    return numeric


def check_inner(text: str, outer: str) -> str:
    """Tell where guests are to listen.

    :param text: ``[virtlogd] relay_guest_address``
    :param outer: the numeric address that the relay listens on
    :raises InvalidOption: others than this host reach it, or it is the
        relay's own
    """
    try:
        found = ipaddress.IPv4Address(text)
    except ValueError:
        found = None
    if found is None or not found.is_loopback:
        raise exception.InvalidOption(
            _INNER, text, 'it is a numeric address below 127.0.0.0/8, which '
            'only this host reaches')
    if found == _address(outer):
        raise exception.InvalidOption(
            _INNER, text, f'the relay itself listens there, as {_OUTER} '
            'says: set it to another address below 127.0.0.0/8')
    return str(found)


def check_allowed(texts: Sequence[str] | None,
                  outer: str) -> tuple[Network, ...]:
    """Check who may connect from other hosts.

    :param texts: ``[virtlogd] relay_allowed``; None: it is not set
    :param outer: the numeric address that the relay listens on
    :raises InvalidOption: one is no network, or none is set though another
        host is to connect
    """
    if texts is None:
        if not _address(outer).is_loopback:
            raise exception.InvalidOption(
                _ALLOWED, '', f'the relay listens on {outer}, and would let '
                'in this host alone; set it to the addresses or networks of '
                'the hosts of nova-serialproxy, or to this address if it '
                'runs here')
        return ()
    found: list[Network] = []
    for text in texts:
        try:
            found.append(ipaddress.ip_network(text))
        except ValueError as error:
            raise exception.InvalidOption(
                _ALLOWED, text, f'it is no address or network ({error}); '
                'write 192.0.2.10 or 192.0.2.0/28, separated by '
                'commas') from error
    return tuple(found)
