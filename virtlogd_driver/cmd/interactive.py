# SPDX-License-Identifier: Apache-2.0
"""A guest's interactive console in this terminal."""

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable
from typing import NamedTuple

from virtlogd_driver import exception
from virtlogd_driver.cmd import control_sequences, terminal
from virtlogd_driver.cmd.telnet import Telnet

#: Seconds between two attempts to be connected again.
_PAUSE = 0.5
#: Seconds without a guest until it has left; a hard reboot may fall in it.
_PATIENCE = 10.0


class Console(NamedTuple):
    """A console connects an operator's terminal with a guest."""

    socket: socket.socket
    #: None: bytes are sent as they are.
    telnet: Telnet | None = None


#: Opens a connection; HostError, GuestNotFound or OSError where there is none
#: (right now).
Connect = Callable[[], Console]


def parse_escape(text: str) -> bytes:
    """Give the byte of an escape key that is written as ``^]``.

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
        keys: int, screen: int, *, watch: bool = False) -> bool:
    """Be at the console until the escape key is typed, or the guest is gone.

    A guest that is stopped closes it; it is opened again when it is there
    again.

    :param connect: called at the start, and whenever it was closed
    :param show: makes what the guest writes fit for the terminal
    :param keys: descriptor of the terminal that is typed on
    :param screen: descriptor of the terminal that is written to
    :param watch: nothing that is typed is sent
    :returns: False: the guest is on this host no more
    """
    # Also, so that a first refusal is said on a terminal as it was.
    console = connect()
    with terminal.raw(keys), contextlib.suppress(_Left):
        while True:
            with console.socket:
                _talk(console, show, escape, keys, screen, watch=watch)
            _say(screen, 'closed: waiting for the guest')
            again = _again(connect, escape, keys, screen)
            if again is None:
                return False
            console = again
            _say(screen, 'connected')
    return True


def _say(screen: int, text: str) -> None:
    """Write something that the guest did not, on a line of its own."""
    _write(screen, (f'{control_sequences.RESET_SCREEN}\r\n'
                    f'[{control_sequences.visible(text)}]\r\n').encode())


def _talk(console: Console, show: Callable[[bytes], bytes],
          escape: bytes, keys: int, screen: int, *,
          watch: bool = False) -> None:
    """Hand on bytes both ways until the console is closed.

    What a guest does not take is kept, and its output is read meanwhile: a
    viewer that does not read stops a guest.
    """
    line, telnet = console
    line.setblocking(False)
    there = line.fileno()
    typed = b''
    while True:
        readable, writable, _ = select.select(
            [there, keys], [there] if typed else [], [])
        if keys in readable:
            data = _typed(escape, keys)
            if not watch:
                typed += telnet.typed(data) if telnet else data
        if there in readable:
            try:
                data = line.recv(1 << 16)
            except BlockingIOError:
                continue
            except OSError:
                return
            if not data:
                return
            if telnet:
                data, answer = telnet.received(data)
                typed += answer
            _write(screen, show(data))
        if there in writable:
            try:
                typed = typed[line.send(typed):]
            except BlockingIOError:
                continue
            except OSError:
                # There may be more to read, and then the end of it.
                typed = b''


def _typed(escape: bytes, keys: int) -> bytes:
    """Read keys.

        :raises _Left: the escape key was there, or the terminal is gone
        """
    data = os.read(keys, 4096)
    if not data or escape in data:
        raise _Left
    return data


def _again(connect: Connect, escape: bytes, keys: int, screen: int
           ) -> Console | None:
    """Give the console when it is there again; None: the guest has left."""
    gone_since: float | None = None
    reason = ''
    while True:
        deadline = time.monotonic() + _PAUSE
        while (left := deadline - time.monotonic()) > 0:
            if select.select([keys], [], [], left)[0]:
                _typed(escape, keys)
        try:
            return connect()
        except exception.GuestNotFound:
            now = time.monotonic()
            gone_since = gone_since or now
            if now - gone_since >= _PATIENCE:
                return None
            continue
        except exception.VirtlogdDriverError as error:
            if str(error) != reason:
                reason = str(error)
                _say(screen, reason)
        except OSError:
            # It starts, and does not listen yet.
            pass
        gone_since = None


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data):]
