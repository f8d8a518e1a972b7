# SPDX-License-Identifier: Apache-2.0
"""virtlogd's protocol holds against a server that misbehaves.

What a real virtlogd answers is in tests/functional/test_virtlogd_health.py;
here is what a real one never should. The bytes are written out by hand.
"""

import contextlib
import os
import pathlib
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit import descriptors
from virtlogd_driver import exception
from virtlogd_driver.virtlogd import rpc

PROGRAM = 0x87539319
Answer = Callable[[socket.socket, bytes], None]


@contextlib.contextmanager
def server(path: str, answer: Answer) -> Iterator[None]:
    """Answers every call that comes in on one connection."""
    def serve() -> None:
        with contextlib.suppress(OSError):
            client, _ = listener.accept()
            with client:
                while head := client.recv(4):
                    (length,) = struct.unpack('>I', head)
                    answer(client, client.recv(length - 4))

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)
    assert not thread.is_alive()


def message(procedure: int, payload: bytes, serial: int = 1, kind: int = 1,
            status: int = 0, program: int = PROGRAM) -> bytes:
    body = struct.pack('>IIiiIi', program, 1, procedure, kind, serial,
                       status) + payload
    return struct.pack('>I', len(body) + 4) + body


def sends(*parts: bytes) -> Answer:
    def answer(client: socket.socket, call: bytes) -> None:
        for part in parts:
            client.sendall(part)
    return answer


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    return str(tmp_path / 'sock')


def ask(path: str, answer: Answer, timeout: float = 5.0
        ) -> rpc.Position | None:
    with server(path, answer), rpc.Connection(path, timeout) as virtlogd:
        return virtlogd.position('/log')


def test_position_call_and_reply_on_the_wire(path: str) -> None:
    calls: list[bytes] = []

    def answer(client: socket.socket, call: bytes) -> None:
        calls.append(call)
        client.sendall(message(2, struct.pack('>QQ', 7, 2 ** 40)))

    assert ask(path, answer) == rpc.Position(inode=7, offset=2 ** 40)
    assert calls == [
        b'\x87\x53\x93\x19' b'\0\0\0\1' b'\0\0\0\2' b'\0\0\0\0' b'\0\0\0\1'
        b'\0\0\0\0' b'\0\0\0\4/log' b'\0\0\0\0']


def test_reply_in_single_bytes(path: str) -> None:
    reply = message(2, struct.pack('>QQ', 7, 8))

    def answer(client: socket.socket, call: bytes) -> None:
        for byte in reply:
            client.sendall(bytes((byte,)))
            time.sleep(0.001)

    assert ask(path, answer) == rpc.Position(7, 8)


def error(code: int, text: bytes | None) -> bytes:
    if text is None:
        return struct.pack('>iiI', code, 66, 0)
    return struct.pack('>iiII', code, 66, 1, len(text)) + text


def test_a_log_that_is_not_open_is_none(path: str) -> None:
    reply = message(2, error(1, b'No open log file /log'), status=1)
    assert ask(path, sends(reply)) is None


@pytest.mark.parametrize(('payload', 'said'), [
    (error(8, b'unsupported flags'), 'unsupported flags'),
    (error(39, None), 'error 39'),
    (error(39, b'\xff\xfe'), r'\\xff\\xfe'),
])
def test_another_error_is_said(path: str, payload: bytes, said: str) -> None:
    with pytest.raises(exception.VirtlogdError, match=f'{said}.*See '):
        ask(path, sends(message(2, payload, status=1)))


@pytest.mark.parametrize('reply', [
    struct.pack('>I', 3),
    struct.pack('>I', 2 ** 32 - 1),
    message(2, b''),
    message(2, bytes(15)),
    message(2, bytes(17)),
    message(1, bytes(16)),
    message(2, bytes(16), serial=2),
    message(2, bytes(16), kind=3),
    message(2, bytes(16), status=2),
    message(2, bytes(16), program=1),
    message(2, b'', status=1),
    message(2, b'\0\0\0\1' + bytes(16), kind=5),
], ids=['too short', 'too long', 'empty', 'cut', 'longer', 'procedure',
        'serial', 'type', 'status', 'program', 'no error', 'descriptor'])
def test_a_reply_that_is_not_the_protocol_is_refused(
        path: str, reply: bytes) -> None:
    with pytest.raises(exception.VirtlogdError,
                       match=r'not the protocol.*Set ') as caught:
        ask(path, sends(reply))
    assert type(caught.value) is exception.VirtlogdError


def test_nothing_listens(path: str) -> None:
    with pytest.raises(exception.VirtlogdDown,
                       match=r'systemctl start.*journalctl'):
        rpc.Connection(path, 1)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path)
        with pytest.raises(exception.VirtlogdDown):
            rpc.Connection(path, 1)


def test_no_answer_in_time(path: str) -> None:
    start = time.monotonic()
    with pytest.raises(exception.VirtlogdHung, match=r'within 0\.2 s'):
        ask(path, sends(), timeout=0.2)
    assert time.monotonic() - start >= 0.2


def test_half_an_answer_in_time(path: str) -> None:
    with pytest.raises(exception.VirtlogdHung):
        ask(path, sends(message(2, bytes(16))[:20]), timeout=0.2)


def test_slow_bytes_do_not_stretch_the_timeout(path: str) -> None:
    # It would take 50 s, and nobody asks for as long.
    reply = message(2, bytes(1000))

    def answer(client: socket.socket, call: bytes) -> None:
        with contextlib.suppress(OSError):   # who asks has gone
            for byte in reply:
                time.sleep(0.05)
                client.sendall(bytes((byte,)))
                sent.append(byte)

    sent: list[int] = []
    with pytest.raises(exception.VirtlogdHung):
        ask(path, answer, timeout=0.3)
    assert len(sent) < len(reply)


def test_what_comes_at_once_does_not_stretch_the_timeout(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with rpc.Connection(path, 0.1) as virtlogd:
            client, _ = listener.accept()
            with client:
                client.sendall(message(2, bytes(16)))
                time.sleep(0.15)
                with pytest.raises(exception.VirtlogdHung):
                    virtlogd.position('/log')


def test_full_queue_of_connections_is_hung(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener, (
            contextlib.ExitStack()) as waiting:
        listener.bind(path)
        listener.listen(0)
        waiting.enter_context(rpc.Connection(path, 0.2))
        start = time.monotonic()
        with pytest.raises(exception.VirtlogdHung):
            rpc.Connection(path, 0.2)
        assert time.monotonic() - start >= 0.2


def test_full_queue_of_connections_is_waited_for(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        with rpc.Connection(path, 5):
            accepting = threading.Timer(
                0.2, lambda: listener.accept()[0].close())
            accepting.start()
            try:
                rpc.Connection(path, 5).close()
            finally:
                accepting.join()


def test_connection_closed_during_a_call_is_down(path: str) -> None:
    def answer(client: socket.socket, call: bytes) -> None:
        client.shutdown(socket.SHUT_RDWR)

    with pytest.raises(exception.VirtlogdDown, match=r'See .*journalctl'):
        ask(path, answer)


def test_path_too_long_for_a_socket_says_so(tmp_path: pathlib.Path) -> None:
    with pytest.raises(exception.VirtlogdError, match=r'too long.*Set '):
        rpc.Connection(str(tmp_path / ('x' * 120)), 1)


def test_open_log_receives_the_pipe(path: str) -> None:
    domain = uuid.uuid4()
    read_end, write_end = os.pipe()
    calls: list[bytes] = []

    def answer(client: socket.socket, call: bytes) -> None:
        calls.append(call)
        client.sendall(message(
            1, b'\0\0\0\1' + struct.pack('>QQ', 5, 6), kind=5))
        socket.send_fds(client, [b'\0'], [write_end])

    with server(path, answer), rpc.Connection(path, 5) as virtlogd:
        pipe, position = virtlogd.open_log('qemu', domain, 'guest', '/log')
    assert position == rpc.Position(5, 6)
    assert not os.get_inheritable(pipe)
    os.write(pipe, b'boot')
    assert os.read(read_end, 10) == b'boot'
    for descriptor in (pipe, read_end, write_end):
        os.close(descriptor)
    assert calls[0][24:] == (
        b'\0\0\0\4qemu' + domain.bytes + b'\0\0\0\5guest\0\0\0'
        b'\0\0\0\4/log\0\0\0\0')


def test_open_log_with_no_descriptor_is_refused(path: str) -> None:
    answer = sends(
        message(1, b'\0\0\0\1' + struct.pack('>QQ', 5, 6), kind=5), b'\0')
    with (server(path, answer), rpc.Connection(path, 5) as virtlogd,
          pytest.raises(exception.VirtlogdError, match='descriptor')):
        virtlogd.open_log('qemu', uuid.uuid4(), 'guest', '/log')


@pytest.mark.parametrize('count', [2, 3, 10, 253])
@pytest.mark.parametrize('pipe', [True, False])
def test_more_descriptors_than_one_are_all_closed(
        path: str, count: int, pipe: bool) -> None:
    ends = os.pipe() if pipe else (os.memfd_create('sent'),) * 2

    def answer(client: socket.socket, call: bytes) -> None:
        client.sendall(message(
            1, b'\0\0\0\1' + struct.pack('>QQ', 5, 6), kind=5))
        socket.send_fds(client, [b'\0'], [ends[1]] * count)

    with server(path, answer), rpc.Connection(path, 5) as virtlogd:
        before = descriptors.of(ends[1])
        with pytest.raises(exception.VirtlogdError,
                           match=f'{count} descriptors'):
            virtlogd.open_log('qemu', uuid.uuid4(), 'guest', '/log')
        assert descriptors.of(ends[1]) == before
    for end in set(ends):
        os.close(end)


def test_descriptors_with_other_bytes_are_closed(path: str) -> None:
    with open(os.memfd_create('sent'), 'rb') as sent:
        def answer(client: socket.socket, call: bytes) -> None:
            reply = message(2, struct.pack('>QQ', 7, 8))
            for part in (reply[:2], reply[2:9], reply[9:]):
                socket.send_fds(client, [part], [sent.fileno()] * 3)

        with server(path, answer), rpc.Connection(path, 5) as virtlogd:
            before = descriptors.of(sent.fileno())
            assert virtlogd.position('/log') == rpc.Position(7, 8)
            assert descriptors.of(sent.fileno()) == before


def test_what_is_no_pipe_is_refused(path: str) -> None:
    with open(os.memfd_create('sent'), 'rb') as sent:
        def answer(client: socket.socket, call: bytes) -> None:
            client.sendall(message(
                1, b'\0\0\0\1' + struct.pack('>QQ', 5, 6), kind=5))
            socket.send_fds(client, [b'\0'], [sent.fileno()])

        with server(path, answer), rpc.Connection(path, 5) as virtlogd:
            before = descriptors.of(sent.fileno())
            with pytest.raises(exception.VirtlogdError, match='of a pipe'):
                virtlogd.open_log('qemu', uuid.uuid4(), 'guest', '/log')
            assert descriptors.of(sent.fileno()) == before


def test_a_pipe_with_a_reply_that_is_refused_is_closed(path: str) -> None:
    ends = os.pipe()

    def answer(client: socket.socket, call: bytes) -> None:
        client.sendall(message(1, b'\0\0\0\1' + bytes(9), kind=5))
        socket.send_fds(client, [b'\0'], [ends[1]])

    with server(path, answer), rpc.Connection(path, 5) as virtlogd:
        before = descriptors.of(ends[1])
        with pytest.raises(exception.VirtlogdError, match='short reply'):
            virtlogd.open_log('qemu', uuid.uuid4(), 'guest', '/log')
        assert descriptors.of(ends[1]) == before
    for end in ends:
        os.close(end)


def test_what_is_passed_on_of_an_error_is_bounded(path: str) -> None:
    payload = error(39, b'x' * 60000)
    with pytest.raises(exception.VirtlogdError) as caught:
        ask(path, sends(message(2, payload, status=1)))
    assert 1000 < len(str(caught.value)) < 2000


@given(payload=st.binary(max_size=64), status=st.integers(0, 2),
       kind=st.integers(0, 6), length=st.integers(0, 2 ** 32 - 1))
@settings(max_examples=200)
def test_whatever_is_answered_is_understood_or_refused(
        payload: bytes, status: int, kind: int, length: int) -> None:
    """As what virtlogd does not say, and of any length."""
    head, body = message(2, payload, kind=kind, status=status)[:4], (
        message(2, payload, kind=kind, status=status)[4:])
    for sent in (head + body, struct.pack('>I', length) + body):
        ours, its = socket.socketpair()
        with ours, its:
            its.sendall(sent)
            its.shutdown(socket.SHUT_WR)
            virtlogd = object.__new__(rpc.Connection)
            virtlogd._socket, virtlogd._path = ours, '/sock'
            virtlogd._timeout = 1.0
            virtlogd._deadline = time.monotonic() + 1
            virtlogd._serial = 0
            with contextlib.suppress(exception.VirtlogdError):
                virtlogd.position('/log')


def test_open_log_refused(path: str) -> None:
    answer = sends(message(1, error(38, b'Device or resource busy'),
                           status=1))
    with (server(path, answer), rpc.Connection(path, 5) as virtlogd,
          pytest.raises(exception.VirtlogdError, match='busy')):
        virtlogd.open_log('qemu', uuid.uuid4(), 'guest', '/log')
