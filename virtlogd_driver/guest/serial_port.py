# SPDX-License-Identifier: Apache-2.0
"""A pool gives guests the TCP ports that their serial ports listen on."""

import ipaddress
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from virtlogd_driver import exception

OPTION = '[serial_console] port_range'


@dataclass(frozen=True, slots=True)
class PortRange:
    """A range has the TCP ports from ``first`` to ``last``, included."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> 'PortRange':
        """Read nova's ``<start>:<stop>``.

        :raises InvalidOption: malformed, upside down, or not TCP ports
        """
        match = re.fullmatch('([0-9]{1,5}):([0-9]{1,5})', text)
        first, last = map(int, match.groups()) if match else (0, 0)
        if not 0 < first <= last <= 65535:
            raise exception.InvalidOption(
                OPTION, text,
                'it must be <first>:<last> with 1 <= first <= last <= 65535')
        return cls(first, last)

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.last + 1))

    def __contains__(self, port: int) -> bool:
        return self.first <= port <= self.last

    def __len__(self) -> int:
        return self.last - self.first + 1


_IP = ipaddress.IPv4Address | ipaddress.IPv6Address


def _ip(host: str) -> _IP | None:
    """Give the address that is written so; None: it is a name."""
    try:
        address = ipaddress.ip_address(host.partition('%')[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


def overlap(one: str, other: str) -> bool:
    """Tell whether what listens on one address is in the way on the other.

    Whatever their spelling: ``::ffff:192.0.2.1`` is 192.0.2.1. On any address
    is in the way of each: ``0.0.0.0`` of IPv4, ``::`` of both, as QEMU has it
    take IPv4 as well. A name may be any address, now or when it is looked up
    again.
    """
    first, second = _ip(one), _ip(other)
    if first is None or second is None or first == second:
        return True
    return any(a.is_unspecified and a.version >= b.version
               for a, b in ((first, second), (second, first)))


class PortPool:
    """The pool knows which guest holds which port.

    A guest holds its ports from when its XML is made until it is undefined,
    however often it starts and stops in between: an XML that libvirt keeps
    never names a port that another guest was given. Ports belong to their
    owner, so a release can be repeated and never frees another guest's.

    No two guests hold one port on addresses that overlap. What is given can
    be listened on, or is listened on by the guest itself.

    Safe to use from many threads.
    """

    def __init__(self, ports: PortRange,
                 is_free: Callable[[str, int], bool],
                 is_clear: Callable[[str, int], bool] | None = None) -> None:
        """
        :param ports: the range that ports are given out of
        :param is_free: tells whether a host address and port can be bound
        :param is_clear: tells whether nobody is in the way of its viewers,
            either: another port is given only where there is none such; None:
            they connect to that address and port
        """
        self._range = ports
        self._looks = (is_free,) if is_clear is None else (is_clear, is_free)
        # Guests of an older nova may share one.
        self._holders: dict[tuple[str, int], set[str]] = {}
        #: How often ports were given.
        self.given = 0
        self._lock = threading.Lock()

    def adopt(self, owner: str, addresses: Iterable[tuple[str, int]]) -> None:
        """Note what a guest holds already, as found in its XML."""
        with self._lock:
            for address in addresses:
                self._holders.setdefault(address, set()).add(owner)

    def acquire(self, owner: str, host: str, count: int,
                running: bool = False) -> tuple[int, ...]:
        """Give a guest that many ports; those it holds already come first.

        Either all are given or none.

        :param running: the guest runs, so that ports which it holds may be
            in use by itself; in use otherwise, they are somebody else's
        :raises PortRangeExhausted: fewer are left
        :raises InvalidAddress: ``host`` cannot be bound to
        """
        with self._lock:
            found = self._find(owner, host, count, running)
            self.given += 1
            for port in found:
                self._holders.setdefault((host, port), set()).add(owner)
            return found

    def check(self, owner: str, host: str, count: int) -> None:
        """Tell whether :meth:`acquire` would do; nothing is given.

        :raises PortRangeExhausted: fewer are left
        :raises InvalidAddress: ``host`` cannot be bound to
        """
        with self._lock:
            self._find(owner, host, count, False)

    def _find(self, owner: str, host: str, count: int,
              running: bool) -> tuple[int, ...]:
        mine, others = set(), set()
        for (at, port), owners in self._holders.items():
            if port in self._range and overlap(at, host):
                if owner in owners:
                    mine.add(port)
                if owners - {owner}:
                    others.add(port)
        found: list[int] = []
        for is_free in self._looks:
            for port in (*sorted(mine), *self._range):
                if len(found) == count:
                    return tuple(found)
                if port in found or port in others:
                    continue
                if (running and port in mine) or is_free(host, port):
                    found.append(port)
        if len(found) == count:
            return tuple(found)
        raise exception.PortRangeExhausted(
            f'No {count} free TCP ports for a guest on {host} in '
            f'{OPTION} = {self._range.first}:{self._range.last} '
            f'({len(mine | others)} of {len(self._range)} are held by '
            f'guests, others may be in use, or root\'s alone as those below '
            f'1024 are): widen the range.')

    def release(self, owner: str, given: int | None = None) -> bool:
        """Take back all that a guest holds. Harmless when it holds none.

        :param given: how often ports had been given when it was looked whether
            the guest needs them; None: it does not
        :returns: False: some were given since, and nothing is taken back
        """
        with self._lock:
            if given not in (None, self.given):
                return False
            for address, owners in list(self._holders.items()):
                owners.discard(owner)
                if not owners:
                    del self._holders[address]
            return True

    def owners(self) -> set[str]:
        """Give the guests that hold ports."""
        with self._lock:
            return set().union(*self._holders.values())

    def held(self) -> dict[tuple[str, int], str]:
        """Give every port that is held, and one guest that holds it."""
        with self._lock:
            return {address: min(owners)
                    for address, owners in self._holders.items()}
