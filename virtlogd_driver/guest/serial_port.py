# SPDX-License-Identifier: Apache-2.0
"""The TCP ports that guests' serial ports listen on."""

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from virtlogd_driver import exception

OPTION = '[serial_console] port_range'


@dataclass(frozen=True, slots=True)
class PortRange:
    """TCP ports from ``first`` to ``last``, both included."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> 'PortRange':
        """Read nova's ``<start>:<stop>``.

        :raises InvalidOption: malformed, upside down, or not TCP ports
        """
        match = re.fullmatch(r'(\d+):(\d+)', text)
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


class PortPool:
    """Which guest holds which port.

    A guest holds its ports from when its XML is made until it is undefined,
    however often it starts and stops in between: an XML that libvirt keeps
    never names a port that another guest was given. Ports belong to their
    owner, so a release can be repeated and never frees another guest's.

    Safe to use from many threads.
    """

    def __init__(self, ports: PortRange,
                 is_free: Callable[[str, int], bool]) -> None:
        """
        :param ports: the range that ports are given out of
        :param is_free: tells whether a host address and port can be bound
        """
        self._range = ports
        self._is_free = is_free
        self._owner: dict[tuple[str, int], str] = {}
        self._lock = threading.Lock()

    def adopt(self, owner: str, addresses: Iterable[tuple[str, int]]) -> None:
        """Note what a guest holds already, as found in its XML."""
        with self._lock:
            for address in addresses:
                self._owner.setdefault(address, owner)

    def acquire(self, owner: str, host: str, count: int) -> tuple[int, ...]:
        """Give a guest that many ports; those it holds already come first.

        Either all are given or none.

        :raises PortRangeExhausted: fewer are left
        :raises InvalidAddress: ``host`` cannot be bound to
        """
        with self._lock:
            found = self._find(owner, host, count)
            for port in found:
                self._owner[host, port] = owner
            return found

    def check(self, owner: str, host: str, count: int) -> None:
        """Whether :meth:`acquire` would do; nothing is given.

        :raises PortRangeExhausted: fewer are left
        :raises InvalidAddress: ``host`` cannot be bound to
        """
        with self._lock:
            self._find(owner, host, count)

    def _find(self, owner: str, host: str, count: int) -> tuple[int, ...]:
        held = sorted(port for (at, port), who in self._owner.items()
                      if who == owner and at == host
                      and port in self._range)[:count]
        new: list[int] = []
        for port in self._range:
            if len(held) + len(new) == count:
                break
            if (host, port) not in self._owner and self._is_free(host, port):
                new.append(port)
        if len(held) + len(new) < count:
            raise exception.PortRangeExhausted(
                f'No {count} free TCP ports for a guest on {host} in '
                f'{OPTION} = {self._range.first}:{self._range.last} '
                f'({self._held_on(host)} of {len(self._range)} are held '
                f'by guests): widen the range.')
        return tuple(held + new)

    def _held_on(self, host: str) -> int:
        return sum(at == host and port in self._range
                   for at, port in self._owner)

    def release(self, owner: str) -> None:
        """Take back all that a guest holds. Harmless when it holds none."""
        with self._lock:
            for address in [a for a, who in self._owner.items()
                            if who == owner]:
                del self._owner[address]

    def held(self) -> dict[tuple[str, int], str]:
        """Every port that is held, and by whom."""
        with self._lock:
            return dict(self._owner)
