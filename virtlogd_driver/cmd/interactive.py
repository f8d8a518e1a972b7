# SPDX-License-Identifier: Apache-2.0
"""An operator's terminal is connected to a guest's interactive console."""

import contextlib
import functools
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple

from virtlogd_driver import exception
from virtlogd_driver.cmd import control_sequences, terminal
from virtlogd_driver.cmd.telnet import Telnet

_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
#: Seconds between two attempts to be connected again.
_PAUSE = 0.5
#: Seconds without output after which one leaves whose input has ended.
_QUIET = 1.0
#: Bytes of a pipe, or of answers, that are kept for a guest that does not take
#: them.
_MOST_TYPED = 1 << 16
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
    """The operator typed the escape key, or the input has ended."""


@dataclass(slots=True)
class Pipe:
    """What is typed comes from a pipe or a file: no key leaves, its end does.

    It ends once all of it was sent and the guest is quiet.
    """

    #: Nothing of it is sent, so it is not read.
    watch: bool = False
    #: It was read to its end.
    ended: bool = False


def run(console: Console, connect: Connect, show: Callable[[bytes], bytes],
        escape: bytes, keys: int, screen: int, *, watch: bool = False,
        pipe: Pipe | None = None,
        say: Callable[[str], None] | None = None) -> bool:
    """Be at the console until the escape key is typed, or the guest is gone.

    A guest that is stopped closes it; it is opened again when it is there
    again.

    :param connect: called whenever it was closed
    :param show: makes what the guest writes fit for the terminal
    :param keys: descriptor of the terminal that is typed on
    :param screen: descriptor of the terminal that is written to
    :param watch: nothing that is typed is sent
    :param pipe: keys are no terminal's; None: they are
    :param say: says what the guest did not write; None: on the screen
    :returns: False: the guest is on this host no more
    :raises OSError: keys or screen are gone, or take nothing
    """
    if say is None:
        say = functools.partial(_say, screen)
    with (terminal.raw(keys) if pipe is None else contextlib.nullcontext(),
          contextlib.suppress(_Left)):
        while True:
            with console.socket:
                _talk(console, show, escape, keys, screen, watch=watch,
                      pipe=pipe)
            if pipe is not None and pipe.ended:
                break
            say('closed: waiting for the guest')
            again = _again(connect, escape, None if pipe else keys, say)
            if again is None:
                return False
            console = again
            say('connected')
    return True


def _say(screen: int, text: str) -> None:
    """Write something that the guest did not, on a line of its own."""
    _write(screen, terminal.encode(
        f'{control_sequences.RESET_SCREEN}\r\n'
        f'[{control_sequences.visible(text)}]\r\n'))


def _talk(console: Console, show: Callable[[bytes], bytes],
          escape: bytes, keys: int, screen: int, *,
          watch: bool = False, pipe: Pipe | None = None) -> None:
    """Hand on bytes both ways until the console is closed.

    What a guest does not take is kept, and its output is read meanwhile: a
    viewer that does not read stops a guest.
    """
    line, telnet = console
    line.setblocking(False)
    there = line.fileno()
    typed = b''
    while True:
        is_read = pipe is None or not (
            pipe.watch or pipe.ended or len(typed) >= _MOST_TYPED)
        readable, writable = _ready(
            [there, keys] if is_read else [there], [there] if typed else [],
            _QUIET if pipe and pipe.ended and not typed else None)
        if not readable and not writable:
            raise _Left
        if keys in readable:
            data = (_typed(escape, keys) if pipe is None
                    else os.read(keys, 4096))
            if not data and pipe is not None:
                pipe.ended = True
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
                if len(typed) < _MOST_TYPED:
                    # A guest may ask without end.
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


def _again(connect: Connect, escape: bytes, keys: int | None,
           say: Callable[[str], None]) -> Console | None:
    """Give the console when it is there again; None: the guest has left.

    :param keys: None: nothing is typed that could leave
    """
    gone_since: float | None = None
    reason = ''
    while True:
        deadline = time.monotonic() + _PAUSE
        while (left := deadline - time.monotonic()) > 0:
            if keys is None:
                time.sleep(left)
            elif keys in _ready([keys], timeout=left)[0]:
                _typed(escape, keys)
        try:
            return connect() if keys is None else _connected(
                connect, escape, keys)
        except exception.GuestNotFound:
            now = time.monotonic()
            gone_since = gone_since or now
            if now - gone_since >= _PATIENCE:
                return None
            continue
        except exception.VirtlogdDriverError as error:
            if str(error) != reason:
                reason = str(error)
                say(reason)
        except OSError:
            # It starts, and does not listen yet.
            pass
        gone_since = None


def _connected(connect: Connect, escape: bytes, keys: int) -> Console:
    """Connect, in a thread: libvirt may hang, and only a key leaves.

    :raises _Left: the escape key was typed meanwhile
    """
    answer: Future[Console] = Future()
    ended, end = socket.socketpair()

    def ask() -> None:
        with end:
            try:
                answer.set_result(connect())
            except BaseException as error:
                answer.set_exception(error)

    with ended:
        try:
            threading.Thread(target=ask, daemon=True).start()
        except RuntimeError:
            # There is none to be had.
            ask()
        while not answer.done():
            if keys in _ready([ended.fileno(), keys])[0]:
                _typed(escape, keys)
    return answer.result()


def _ready(reads: Collection[int], writes: Collection[int] = (),
           timeout: float | None = None) -> tuple[set[int], set[int]]:
    """Give the descriptors that can be read, and those that can be written.

    Their numbers may be above 1023, which select(2) does not take.

    :param timeout: seconds until an empty answer; None: there is none
    """
    with selectors.PollSelector() as selector:
        for fd in {*reads, *writes}:
            selector.register(fd, (_READ if fd in reads else 0)
                              | (_WRITE if fd in writes else 0))
        ready = selector.select(timeout)
    return ({key.fd for key, events in ready if events & _READ},
            {key.fd for key, events in ready if events & _WRITE})


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data):]
