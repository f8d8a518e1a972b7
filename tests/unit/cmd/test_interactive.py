# SPDX-License-Identifier: Apache-2.0
import contextlib
import itertools
import os
import pty
import signal
import socket
import threading
import time
from collections.abc import Iterator
from unittest import mock

import pytest

from tests.lab.wait import readable
from tests.unit import descriptors
from virtlogd_driver import exception
from virtlogd_driver.cmd import interactive
from virtlogd_driver.cmd.telnet import Telnet


@pytest.fixture(autouse=True)
def _in_time() -> Iterator[None]:
    """A test whose other thread has failed does not wait for it for ever."""
    def fail(*_: object) -> None:
        raise TimeoutError('it has not ended for a minute')

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(params=['few', 'many'])
def descriptors_open(request: pytest.FixtureRequest) -> Iterator[None]:
    """A process has few files open, or more than select(2) takes."""
    with contextlib.ExitStack() as at_the_end:
        if request.param == 'many':
            at_the_end.enter_context(descriptors.many())
        yield


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


def _never() -> interactive.Console:
    raise AssertionError('it was not closed')


@pytest.mark.usefixtures('descriptors_open')
def test_a_pipe_is_sent_and_ends_once_the_guest_is_quiet() -> None:
    console, guest = socket.socketpair()
    keys, typed = os.pipe()
    screen, shown = os.pipe()
    # No key leaves.
    os.write(typed, b'a\x1dcommand\n')
    os.close(typed)
    seen: list[bytes] = []

    def answer() -> None:
        with guest:
            seen.append(guest.recv(100))
            for text in (b'one\n', b'two\n', b'last\n'):
                # One that does not wait for it leaves meanwhile.
                time.sleep(0.1)
                guest.sendall(text)
                seen.append(os.read(screen, 100))
            # It leaves by itself.
            seen.append(guest.recv(100))

    def show(text: bytes) -> bytes:
        # The guest is quiet from now on.
        if text == b'last\n':
            interactive._QUIET = 0.05
        return text

    answering = threading.Thread(target=answer, daemon=True)
    answering.start()
    with mock.patch.object(interactive, '_QUIET', 60.0):
        assert interactive.run(
            interactive.Console(console), _never, show, b'\x1d', keys, shown,
            pipe=interactive.Pipe())
    answering.join()
    assert seen == [b'a\x1dcommand\n', b'one\n', b'two\n', b'last\n', b'']
    for fd in (keys, screen, shown):
        os.close(fd)


def test_a_pipe_of_one_who_watches_is_not_read() -> None:
    console, guest = socket.socketpair()
    keys, typed = os.pipe()
    screen, shown = os.pipe()
    os.close(typed)
    said: list[str] = []

    def connect() -> interactive.Console:
        raise exception.GuestNotFound('gone')

    guest.sendall(b'seen\n')
    threading.Timer(2 * interactive._QUIET, guest.close).start()
    with mock.patch.object(interactive, '_PATIENCE', 0.1):
        assert not interactive.run(
            interactive.Console(console), connect, bytes, b'\x1d', keys, shown,
            pipe=interactive.Pipe(watch=True), say=said.append)
    assert os.read(screen, 100) == b'seen\n'
    assert said == ['closed: waiting for the guest']
    for fd in (keys, screen, shown):
        os.close(fd)


@pytest.mark.usefixtures('descriptors_open')
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
        threading.Thread(target=watch, daemon=True),
        threading.Thread(target=os.write, args=(typed, b'pasted' * 10_000)),
        threading.Thread(target=write, daemon=True)]
    for thread in threads:
        thread.start()
    with console:
        interactive._talk(
            interactive.Console(console), bytes, b'\x1d', keys, shown)
    os.close(shown)
    for thread in threads:
        thread.join(10)
    assert bytes(seen) == text
    guest.close()
    for fd in (keys, typed, screen):
        os.close(fd)


def test_who_watches_sends_nothing_but_answers_of_telnet() -> None:
    console, guest = socket.socketpair()
    keys, typed = os.pipe()
    screen, shown = os.pipe()
    guest.sendall(b'\xff\xfb\x01hello')
    os.write(typed, b'never')

    def talk() -> None:
        interactive._talk(interactive.Console(console, Telnet()), bytes,
                          b'\x1d', keys, shown, watch=True)
    thread = threading.Thread(target=talk, daemon=True)
    thread.start()
    assert os.read(screen, 100) == b'hello'
    assert guest.recv(100) == b'\xff\xfd\x01'
    # What was typed has been read before the guest is gone.
    while readable(keys):
        time.sleep(0.01)
    guest.shutdown(socket.SHUT_WR)
    thread.join(10)
    console.close()
    assert guest.recv(100) == b''
    guest.close()
    for fd in (keys, typed, screen, shown):
        os.close(fd)


def test_a_guest_that_asks_without_end_and_takes_no_answer() -> None:
    console, guest = socket.socketpair()
    keys, typed = os.pipe()
    screen, shown = os.pipe()
    talk = threading.Thread(target=interactive._talk, daemon=True, args=(
        interactive.Console(console, Telnet()), bytes, b'\x1d', keys, shown))
    talk.start()
    asked = b'\xff\xfb\x63' * 1_000_000
    guest.sendall(asked)
    guest.settimeout(1.0)
    answered = 0
    with contextlib.suppress(TimeoutError):
        while data := guest.recv(1 << 16):
            answered += len(data)
    # What the kernel keeps, beside that.
    assert 0 < answered < len(asked) / 2
    guest.close()
    talk.join(10)
    console.close()
    for fd in (keys, typed, screen, shown):
        os.close(fd)


def test_telnet_is_spoken_and_not_shown() -> None:
    console, guest = socket.socketpair()
    keys, typed = os.pipe()
    screen, shown = os.pipe()
    guest.sendall(b'\xff\xfb\x01\xff\xfb\x03\xff\xfb\x00\xff\xfd\x00hello')
    os.write(typed, b'a\xffb')
    talk = threading.Thread(target=interactive._talk, daemon=True, args=(
        interactive.Console(console, Telnet()), bytes, b'\x1d', keys, shown))
    talk.start()
    assert os.read(screen, 100) == b'hello'
    sent = b''
    while len(sent) < 16:
        sent += guest.recv(100)
    # The keys may come before the answers, or after some of them.
    assert sent.replace(b'a\xff\xffb', b'') == (
        b'\xff\xfd\x01\xff\xfd\x03\xff\xfd\x00\xff\xfb\x00')
    assert b'a\xff\xffb' in sent
    guest.close()
    talk.join(10)
    console.close()
    for fd in (keys, typed, screen, shown):
        os.close(fd)


@pytest.mark.usefixtures('descriptors_open')
def test_it_ends_when_the_guest_is_gone_and_says_why_it_waits(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interactive, '_PAUSE', 0.001)
    monkeypatch.setattr(interactive, '_PATIENCE', 0.01)
    console, guest = socket.socketpair()
    again, same_guest = socket.socketpair()
    keys, terminal = pty.openpty()
    screen, shown = os.pipe()
    answers = itertools.chain(
        [exception.HostError('Guest x is shut off\x1b[8m.')] * 3,
        [ConnectionRefusedError(), interactive.Console(again)],
        itertools.repeat(exception.GuestNotFound('gone')))

    def connect() -> interactive.Console:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    guest.sendall(b'\x1b[31mred')
    guest.close()
    same_guest.close()
    assert not interactive.run(interactive.Console(console), connect, bytes,
                               b'\x1d', terminal, shown)
    seen = os.read(screen, 1 << 16)
    assert seen.count(b'shut off^[[8m.') == 1
    assert seen.index(b'red\x1b[0m') < seen.index(b'closed: waiting')
    assert b'[connected]' in seen
    for fd in (keys, terminal, screen, shown):
        os.close(fd)


def test_the_escape_key_leaves_while_libvirt_hangs(
        monkeypatch: pytest.MonkeyPatch) -> None:
    """In raw mode no other key does, and no signal either."""
    monkeypatch.setattr(interactive, '_PAUSE', 0.001)
    console, guest = socket.socketpair()
    guest.close()
    keys, terminal = pty.openpty()
    screen, shown = os.pipe()
    hangs, goes_on = threading.Event(), threading.Event()

    def connect() -> interactive.Console:
        hangs.set()
        goes_on.wait(30)
        raise exception.GuestNotFound('gone')

    def leave() -> None:
        hangs.wait(30)
        os.write(keys, b'\x1d')

    leaving = threading.Thread(target=leave, daemon=True)
    leaving.start()
    began = time.monotonic()
    assert interactive.run(interactive.Console(console), connect, bytes,
                           b'\x1d', terminal, shown)
    assert time.monotonic() - began < 20
    goes_on.set()
    leaving.join()
    for fd in (keys, terminal, screen, shown):
        os.close(fd)
