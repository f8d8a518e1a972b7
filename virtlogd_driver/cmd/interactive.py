# SPDX-License-Identifier: Apache-2.0
"""A guest's interactive console in this terminal."""

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable

from virtlogd_driver import exception
from virtlogd_driver.cmd import terminal

#: Seconds between two attempts to be connected again.
_PAUSE = 0.5

#: Opens a connection to the console; HostError, GuestNotFound or OSError
#: where there is none (right now).
Connect = Callable[[], socket.socket]


def parse_escape(text: str) -> bytes:
    """The byte of an escape key that is written as ``^]``.

    :raises ValueError: it is none
    """
    if len(text) == 2 and text[0] == '^' and '@' <= text[1].upper() <= '_':
        return bytes((ord(text[1].upper()) ^ 0x40,))
    if len(text) == 1 and text.isascii():
        return text.encode()
    raise ValueError(f'{text!r} is neither a character nor ^ and one')


class _Left(Exception):
    """The operator typed the escape key."""


def run(connect: Connect, show: Callable[[bytes], bytes], escape: bytes,
        keys: int, screen: int) -> None:
    """Be at the console until the escape key is typed.

    A guest that is stopped closes it; it is opened again when it is there
    again.

    :param connect: called at the start, and whenever it was closed
    :param show: makes what the guest writes fit for the terminal
    :param keys: descriptor of the terminal that is typed on
    :param screen: descriptor of the terminal that is written to
    """
    # Also, so that a first refusal is said on a terminal as it was.
    console = connect()
    with terminal.raw(keys), contextlib.suppress(_Left):
        while True:
            with console:
                _talk(console, show, escape, keys, screen)
            _write(screen, b'\r\n[closed: waiting for the guest]\r\n')
            console = _again(connect, escape, keys)
            _write(screen, b'[connected]\r\n')


def _talk(console: socket.socket, show: Callable[[bytes], bytes],
          escape: bytes, keys: int, screen: int) -> None:
    """Hand on bytes both ways until the console is closed.

    What a guest does not take is kept, and its output is read meanwhile: a
    viewer that does not read stops a guest.
    """
    console.setblocking(False)
    typed = b''
    while True:
        there = console.fileno()
        readable, writable, _ = select.select(
            [there, keys], [there] if typed else [], [])
        if keys in readable:
            typed += _typed(escape, keys)
        if there in readable:
            try:
                data = console.recv(1 << 16)
            except BlockingIOError:
                continue
            except OSError:
                return
            if not data:
                return
            _write(screen, show(data))
        if there in writable:
            try:
                typed = typed[console.send(typed):]
            except BlockingIOError:
                continue
            except OSError:
                # There may be more to read, and then the end of it.
                typed = b''


def _typed(escape: bytes, keys: int) -> bytes:
    """:raises _Left: the escape key was among them, or the terminal is gone"""
    data = os.read(keys, 4096)
    if not data or escape in data:
        raise _Left
    return data


def _again(connect: Connect, escape: bytes, keys: int) -> socket.socket:
    while True:
        deadline = time.monotonic() + _PAUSE
        while (left := deadline - time.monotonic()) > 0:
            if select.select([keys], [], [], left)[0]:
                _typed(escape, keys)
        with contextlib.suppress(OSError, exception.VirtlogdDriverError):
            return connect()


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data):]
