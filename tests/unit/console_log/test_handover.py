# SPDX-License-Identifier: Apache-2.0
"""Open files go from one process to another, past whoever else is there."""

import array
import contextlib
import itertools
import os
import pathlib
import socket
from collections.abc import Iterator

import pytest

from tests.unit import descriptors
from virtlogd_driver.console_log import handover


@pytest.fixture
def files(tmp_path: pathlib.Path) -> Iterator[list[int]]:
    opened = []
    for number in range(300):
        (tmp_path / str(number)).write_bytes(b'%d' % number)
        opened.append(os.open(tmp_path / str(number), os.O_RDONLY))
    yield opened
    for descriptor in opened:
        os.close(descriptor)


def contents(descriptors: list[int] | None) -> list[bytes]:
    """What is in the files, which are closed."""
    assert descriptors is not None
    found = []
    for descriptor in descriptors:
        found.append(os.pread(descriptor, 9, 0))
        assert not os.get_inheritable(descriptor)
        os.close(descriptor)
    return found


@contextlib.contextmanager
def connected(receiver: handover.Receiver) -> Iterator[socket.socket]:
    name, _ = receiver.address
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sender:
        sender.connect(name)
        yield sender


def send(address: handover.Address, files: list[int], caller: int) -> bool:
    sender = handover.Sender(caller)
    try:
        return sender.send(address, files)
    finally:
        sender.close()


def message(sender: socket.socket, text: bytes, *files: int) -> None:
    sender.sendmsg([text], [(socket.SOL_SOCKET, socket.SCM_RIGHTS,
                             array.array('i', files))])


@pytest.mark.parametrize('count', [1, 2, 128, 129, 300])
def test_sent_and_taken(files: list[int], count: int,
                        tmp_path: pathlib.Path) -> None:
    with handover.Receiver() as receiver:
        assert send(receiver.address, files[:count], os.getpid())
        assert contents(receiver.take(count)) == [
            b'%d' % number for number in range(count)]
        assert receiver.take(1) is None
    assert len(descriptors.below(tmp_path)) == len(files)


def test_from_another_process(files: list[int]) -> None:
    with handover.Receiver() as receiver:
        child = os.fork()
        if child == 0:
            sent = send(receiver.address, files[:2], os.getppid())
            os._exit(0 if sent else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert contents(receiver.take(2)) == [b'0', b'1']


def test_nobody_but_the_caller_is_sent_anything(files: list[int]) -> None:
    """The name is right, and another process listens there."""
    with handover.Receiver() as receiver:
        for other in {os.getppid(), 0, 1} - {os.getpid()}:
            assert not send(receiver.address, files[:1], other)
        assert receiver.take(1) is None


@pytest.mark.parametrize('kind', [
    socket.SOCK_DGRAM, socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
@pytest.mark.parametrize('name', [
    b'{}/notify', b'\0virtlogd-driver-test', b'\0/org/freedesktop/x'])
def test_no_address_that_a_service_has(
        files: list[int], tmp_path: pathlib.Path, name: bytes,
        kind: socket.SocketKind) -> None:
    """Not even a connection is made; it may be the caller's own."""
    # No other run of the tests has a name that is not a path.
    name = (name + b'%d' % os.getpid() if name.startswith(b'\0')
            else name.replace(b'{}', os.fsencode(tmp_path)))
    with socket.socket(socket.AF_UNIX, kind) as service:
        service.bind(name)
        service.settimeout(0)
        if kind is not socket.SOCK_DGRAM:
            service.listen()
        assert not send((name, bytes(16)), files[:1], os.getpid())
        look = (service.accept if kind is not socket.SOCK_DGRAM
                else lambda: service.recv(99))
        with pytest.raises(BlockingIOError):
            look()


def test_nobody_listens(files: list[int]) -> None:
    with handover.Receiver() as receiver:
        address = receiver.address
    assert not send(address, files[:1], os.getpid())


def test_what_others_send_is_thrown_away(
        files: list[int], tmp_path: pathlib.Path) -> None:
    with handover.Receiver() as receiver:
        _, secret = receiver.address
        with connected(receiver) as forged:
            message(forged, b'x' * len(secret), files[0])
        with connected(receiver) as forged:
            message(forged, secret + b'x', files[0], files[1])
        with connected(receiver) as forged:
            message(forged, secret)
        with connected(receiver) as forged:
            message(forged, secret, *files[:5])   # more than there are
        with connected(receiver):
            assert send(
                receiver.address, files[2:4], os.getpid())
            assert contents(receiver.take(2)) == [b'2', b'3']
        with connected(receiver) as forged:
            message(forged, secret, files[0])   # fewer than there are
            assert receiver.take(2) is None
    assert len(descriptors.below(tmp_path)) == len(files)


def test_none_are_expected() -> None:
    with handover.Receiver() as receiver:
        assert receiver.take(0) == []


def test_a_flood_keeps_nobody_waiting(files: list[int]) -> None:
    with handover.Receiver() as receiver, contextlib.ExitStack() as flood:
        name, _ = receiver.address
        for _ in itertools.count():
            stranger = flood.enter_context(socket.socket(
                socket.AF_UNIX, socket.SOCK_SEQPACKET))
            stranger.setblocking(False)
            try:
                stranger.connect(name)
            except BlockingIOError:
                break
        assert not send(receiver.address, files[:1], os.getpid())
        assert receiver.take(1) is None
        assert send(receiver.address, files[:1], os.getpid())
        assert contents(receiver.take(1)) == [b'0']


def test_one_connection_for_many_calls(
        files: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    sender = handover.Sender(os.getpid())
    with handover.Receiver() as receiver, handover.Receiver() as other:
        for box in (receiver, other):
            assert sender.send(box.address, files[:1])
            assert contents(box.take(1)) == [b'0']
        monkeypatch.delattr(handover.Sender, '_connect')
        for number in range(1, 9):
            for box in (receiver, other):
                assert sender.send(
                    box.address, files[number:number + 2])
                assert contents(box.take(2)) == [
                    b'%d' % number, b'%d' % (number + 1)]
    sender.close()


def test_a_helper_that_was_started_anew(files: list[int]) -> None:
    with handover.Receiver() as receiver:
        for _ in range(3):
            assert send(receiver.address, files[:1], os.getpid())
            assert contents(receiver.take(1)) == [b'0']


def test_a_receiver_that_is_gone(files: list[int],
                                 tmp_path: pathlib.Path) -> None:
    sender = handover.Sender(os.getpid())
    with handover.Receiver() as receiver:
        assert sender.send(receiver.address, files[:1])
        assert contents(receiver.take(1)) == [b'0']
    assert not sender.send(receiver.address, files[:1])
    assert len(descriptors.below(tmp_path)) == len(files)


def test_connections_are_bounded(
        files: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, '_MOST_CONNECTIONS', 2)
    sender = handover.Sender(os.getpid())
    with contextlib.ExitStack() as closing:
        boxes = [closing.enter_context(handover.Receiver())
                 for _ in range(4)]
        for box in (*boxes, *boxes):
            assert sender.send(box.address, files[:1])
            assert contents(box.take(1)) == [b'0']
            assert len(sender._connections) <= 2
    sender.close()
