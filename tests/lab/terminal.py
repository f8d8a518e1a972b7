# SPDX-License-Identifier: Apache-2.0
"""A person types at a guest's serial console, over TCP."""

import socket
import time

import fixtures

from tests.lab.wait import readable


class Terminal(fixtures.Fixture):
    """Connected to a serial port that listens on TCP.

    Whoever is connected must read: a guest waits for a peer that does not.

    :ivar seen: all bytes that came so far.
    """

    def __init__(self, host: str, port: int) -> None:
        super().__init__()
        self._address = (host, port)

    def _setUp(self) -> None:
        self.seen = b''
        self.socket = socket.create_connection(self._address, timeout=10)
        self.addCleanup(self.socket.close)

    def type(self, text: bytes) -> None:
        """Send text; it needs its own carriage return."""
        self.socket.sendall(text)

    def read_until(self, text: bytes, seconds: float = 30.0) -> bytes:
        """Read on until ``text`` was seen; all bytes seen so far.

        :raises TimeoutError: it did not come.
        :raises ConnectionError: the console was closed.
        """
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            left = deadline - time.monotonic()
            if left <= 0 or not readable(self.socket, left):
                raise TimeoutError(f'{text!r}: not within {seconds:g} s; '
                                   f'seen: {self.seen[-400:]!r}')
            data = self._receive()
            if data is None:
                raise ConnectionError(f'closed before {text!r}; '
                                      f'seen: {self.seen[-400:]!r}')
            self.seen += data
        return self.seen

    def _receive(self) -> bytes | None:
        """What has come; None: it is closed."""
        return self.socket.recv(65536) or None
