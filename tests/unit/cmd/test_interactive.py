# SPDX-License-Identifier: Apache-2.0
import os
import socket
import threading

import pytest

from virtlogd_driver.cmd import interactive


@pytest.mark.parametrize(('text', 'key'), [
    ('^]', b'\x1d'), ('^a', b'\x01'), ('^A', b'\x01'), ('^@', b'\0'),
    ('~', b'~'), ('^', b'^'),
])
def test_escape(text: str, key: bytes) -> None:
    assert interactive.parse_escape(text) == key


@pytest.mark.parametrize('text', ['', '^1', 'ab', '^^^', 'é'])
def test_no_escape(text: str) -> None:
    with pytest.raises(ValueError, match='neither a character'):
        interactive.parse_escape(text)


def test_a_guest_that_does_not_read_is_read_all_the_same() -> None:
    """A viewer that waits to be read from stops the guest."""
    console, guest = socket.socketpair()
    keys, typed = os.pipe()
    screen, shown = os.pipe()
    text = b'x' * 2_000_000
    seen = bytearray()

    def watch() -> None:
        while data := os.read(screen, 1 << 16):
            seen.extend(data)

    def write() -> None:
        guest.sendall(text)
        guest.shutdown(socket.SHUT_WR)

    threads = [
        threading.Thread(target=watch),
        threading.Thread(target=os.write, args=(typed, b'pasted' * 10_000)),
        threading.Thread(target=write)]
    for thread in threads:
        thread.start()
    with console:
        interactive._talk(console, bytes, b'\x1d', keys, shown)
    os.close(shown)
    for thread in threads:
        thread.join(10)
    assert bytes(seen) == text
    guest.close()
    for fd in (keys, typed, screen):
        os.close(fd)
