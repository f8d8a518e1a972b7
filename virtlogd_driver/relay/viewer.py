# SPDX-License-Identifier: Apache-2.0
"""A viewer is one connection to the relay."""

import asyncio
import math
import socket
import time
from typing import Protocol, cast

from virtlogd_driver.relay.buffer import Buffer

Peer = tuple[str, int]

#: Bytes that are handed to the kernel at once.
_CHUNK = 64 * 1024
#: What the kernel keeps for a viewer that does not read, beside the buffer.
_KERNEL_BUFFER = 256 * 1024
#: Seconds until a silent viewer is asked whether it is there, from then on
#: between two questions, and how many may stay without an answer.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 10),
              (socket.TCP_KEEPCNT, 6))
#: Milliseconds until a host that acknowledges nothing counts as gone.
_UNACKNOWLEDGED = 120_000
#: Seconds that one that has gone, or is to go, may take to be rid of.
_GONE = 10.0
#: The peer has ended its side, and the connection is over (tcp_states.h).
_CLOSE_WAIT, _CLOSE = 8, 7


class Console(Protocol):
    """A console is what a viewer is at."""

    def joined(self, viewer: 'Viewer') -> None:
        """Note that a viewer is connected."""

    def left(self, viewer: 'Viewer') -> None:
        """Note that its connection is over."""

    def typed(self, viewer: 'Viewer', data: bytes) -> None:
        """Take what a viewer has sent."""


class Viewer(asyncio.Protocol):
    """A viewer looks at a console, over TCP.

    Nothing here waits: what the viewer does not take is kept in a bounded
    buffer.
    """

    def __init__(self, console: Console, buffer_size: int) -> None:
        self._console = console
        self._buffer = Buffer(buffer_size)
        self._writable = True
        self._reading = True
        self._ending = False
        self._waiting = 0
        self._progress = time.monotonic()
        #: Its numeric address and TCP port.
        self.peer: Peer = ('', 0)
        #: When it came, in seconds since the epoch.
        self.since = time.time()

    @property
    def dropped(self) -> int:
        """Give bytes that it was too slow for."""
        return self._buffer.dropped

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=0)
        found = transport.get_extra_info('peername')
        if found is None:   # reset already
            self._transport.abort()
            return
        self.peer = found[0], found[1]
        self._socket = transport.get_extra_info('socket')
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF,
                                _KERNEL_BUFFER)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            self._socket.setsockopt(socket.IPPROTO_TCP, option, value)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT,
                                _UNACKNOWLEDGED)
        self._console.joined(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._console.left(self)

    def data_received(self, data: bytes) -> None:
        if not self._ending:
            self._console.typed(self, data)

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._flush()

    # What the console calls

    def show(self, data: bytes) -> None:
        """Send what the guest writes, now or when the viewer takes it."""
        if self._ending or self._transport.is_closing():
            return
        if self._writable and not self._buffer:
            self._buffer.sent_at_once(data)
            self._transport.write(data)
        else:
            self._buffer.add(data)

    def say(self, text: str) -> None:
        """Send a line of the relay's own."""
        self.show(f'\r\n[console relay: {text}]\r\n'.encode())

    def end(self, text: str) -> None:
        """Close the connection once the viewer was told why."""
        self.say(text)
        self._ending = True
        self._flush()

    def abort(self) -> None:
        """Close the connection at once."""
        self._ending = True
        self._transport.abort()

    def read_on(self, on: bool) -> None:
        """Take what the viewer types, or leave it with it for now."""
        if self._transport.is_closing():
            return
        self._reading = on
        if on:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def look(self, now: float, timeout: float) -> float:
        """Disconnect a viewer that takes nothing; called every second or so.

        :param now: as time.monotonic() says it
        :param timeout: seconds that a viewer may take nothing, if it is still
            there; 0: any number
        :returns: after how many it was disconnected; 0: it was not
        """
        waiting = self._transport.get_write_buffer_size()
        if waiting != self._waiting or self._takes():
            self._waiting, self._progress = waiting, now
        silent = now - self._progress
        if silent < min(timeout or math.inf,
                        math.inf if self._is_there() else _GONE):
            return 0
        self.abort()
        return silent

    def _takes(self) -> bool:
        """Tell whether nothing waits for it, and it has not gone."""
        return self._writable and self._is_there()

    def _is_there(self) -> bool:
        """Tell whether its side of the connection is open, and to stay."""
        if self._ending:
            return False
        if self._reading and not self._transport.is_closing():
            return True
        # While it is not read from, asyncio does not see that it goes.
        state = self._socket.getsockopt(
            socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        return state not in (_CLOSE_WAIT, _CLOSE)

    def _flush(self) -> None:
        if self._transport.is_closing():
            return
        while self._writable and (chunk := self._buffer.take(_CHUNK)):
            self._transport.write(chunk)
        if self._ending and self._writable:
            self._transport.close()
