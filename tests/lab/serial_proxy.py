# SPDX-License-Identifier: Apache-2.0
"""nova-serialproxy, and who looks at a server's console through it.

It is nova's own: its websockets, its look at the token in the database, its
question to nova-compute whether the port still is the server's. Only the
process that it would start for each viewer is a thread here, so that it has
the database of this process.
"""

import base64
import contextlib
import os
import socket
import struct
import threading
import urllib.parse
from collections.abc import Callable

import fixtures
from nova.console import websocketproxy

from tests.lab.terminal import Terminal


class SerialProxy(fixtures.Fixture):
    """A nova-serialproxy that listens.

    :ivar address: where.
    """

    def _setUp(self) -> None:
        self._proxy = websocketproxy.NovaWebSocketProxy(
            listen_host='127.0.0.1', listen_port=0, file_only=True,
            RequestHandlerClass=websocketproxy.NovaProxyRequestHandler)
        self._listener = socket.create_server(('127.0.0.1', 0))
        self.addCleanup(self._listener.close)
        self.address = self._listener.getsockname()
        self._threads: list[threading.Thread] = []
        self._start(self._serve)
        # None is left in nova's database when that goes away.
        self.addCleanup(self._join)
        # It wakes who waits for the next viewer.
        self.addCleanup(self._listener.shutdown, socket.SHUT_RDWR)

    def _start(self, function: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=function, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _join(self) -> None:
        for thread in self._threads:
            thread.join(30)
            if thread.is_alive():
                raise TimeoutError('a viewer of nova-serialproxy stays')

    def _serve(self) -> None:
        while True:
            try:
                connected, address = self._listener.accept()
            except OSError:
                return
            self._start(self._talk, connected, address)

    def _talk(self, connected: socket.socket, address: object) -> None:
        with connected:
            self._proxy.top_new_client(connected, address)


class WebTerminal(Terminal):
    """A person at a serial console, in a browser.

    :param proxy: where nova-serialproxy listens
    :param url: what the API has returned
    """

    def __init__(self, proxy: tuple[str, int], url: str) -> None:
        super().__init__(*proxy)
        self._token = urllib.parse.urlparse(url).query

    def _setUp(self) -> None:
        super()._setUp()
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f'GET /?{self._token} HTTP/1.1\r\nHost: 127.0.0.1\r\n'
            'Upgrade: websocket\r\nConnection: Upgrade\r\n'
            f'Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n'
            'Sec-WebSocket-Protocol: binary\r\n\r\n'.encode())
        answer = b''
        while b'\r\n\r\n' not in answer:
            data = self.socket.recv(4096)
            if not data:
                raise ConnectionError(f'no websocket: {answer!r}')
            answer += data
        head, _, self._frames = answer.partition(b'\r\n\r\n')
        if b' 101 ' not in head.splitlines()[0]:
            raise ConnectionError(f'no websocket: {head!r}')

    def type(self, text: bytes) -> None:
        """Send text in a frame, masked (RFC 6455, 5.3)."""
        assert len(text) < 126
        mask = os.urandom(4)
        self.socket.sendall(
            bytes((0x82, 0x80 | len(text))) + mask
            + bytes(byte ^ mask[place % 4] for place, byte in enumerate(text)))

    def _receive(self) -> bytes | None:
        data = self.socket.recv(65536)
        if not data:
            return None
        self._frames += data
        text = b''
        with contextlib.suppress(struct.error):
            while len(self._frames) >= 2:
                start, size = 2, self._frames[1]
                if size == 126:
                    start, (size,) = 4, struct.unpack_from(
                        '!H', self._frames, 2)
                elif size == 127:
                    start, (size,) = 10, struct.unpack_from(
                        '!Q', self._frames, 2)
                if len(self._frames) < start + size:
                    break
                if self._frames[0] & 0xf == 8:   # the other side closes
                    return text or None
                text += self._frames[start:start + size]
                self._frames = self._frames[start + size:]
        return text
