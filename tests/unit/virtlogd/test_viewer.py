# SPDX-License-Identifier: Apache-2.0
"""This machine's kernel shows viewers who connect over its loopback."""

import contextlib
import errno
import socket
import time
from collections.abc import Iterator

import pytest

from virtlogd_driver.virtlogd import sock_diag, viewer
from virtlogd_driver.virtlogd.port import numeric


@contextlib.contextmanager
def connected(address: str, listen_on: str | None = None
              ) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A guest's side and a viewer's side of one connection."""
    family = socket.AF_INET6 if ':' in address else socket.AF_INET
    listening = listen_on or address
    with socket.socket(socket.AF_INET6 if ':' in listening
                       else socket.AF_INET) as listener:
        listener.bind((listening, 0))
        listener.listen()
        with socket.socket(family) as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            peer.connect((address, listener.getsockname()[1]))
            guest, _ = listener.accept()
            with guest:
                yield guest, peer


def fill(guest: socket.socket) -> None:
    """Write until nothing goes any more."""
    guest.setblocking(False)
    refused = 0
    while refused < 25:
        try:
            guest.send(bytes(65536))
            refused = 0
        except BlockingIOError:
            refused += 1
            time.sleep(0.02)


EVERY = '0.0.0.0'  # noqa: S104


@pytest.mark.parametrize(('address', 'listen_on', 'listener'), [
    ('127.0.0.1', None, '127.0.0.1'),
    ('127.0.0.1', EVERY, EVERY),
    ('::1', None, '::1'),
    ('::1', '::', '::'),
    ('127.0.0.1', '::', '::'),
    ('127.0.0.1', '::', '127.0.0.1'),
])
def test_viewer_is_found(address: str, listen_on: str | None,
                         listener: str) -> None:
    with connected(address, listen_on) as (guest, peer):
        port = guest.getsockname()[1]
        (found,) = viewer.viewers([(listener, port)])
        assert found.local == (address, port)
        assert found.peer == (address, peer.getsockname()[1])
        assert not found.full
        assert not found.stuck(0)


def test_viewers_of_others_are_not_found() -> None:
    with (connected('127.0.0.1') as (guest, _),
          socket.create_server(('127.0.0.1', 0)) as other):
        port = guest.getsockname()[1]
        assert viewer.viewers([('127.0.0.2', port)]) == []
        assert viewer.viewers([other.getsockname()]) == []
        assert viewer.viewers([]) == []


def test_listener_alone_has_no_viewer() -> None:
    with socket.create_server(('127.0.0.1', 0)) as listener:
        assert viewer.viewers([listener.getsockname()]) == []


def test_viewer_that_does_not_read_is_stuck_until_it_reads() -> None:
    with connected('127.0.0.1') as (guest, peer):
        address = guest.getsockname()
        fill(guest)
        deadline = time.monotonic() + 10
        while not viewer.viewers([address])[0].stuck(1.0):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (stuck,) = viewer.viewers([address])
        assert stuck.full
        assert not stuck.stuck(1000)

        peer.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            while peer.recv(1 << 20):
                pass
        (reads,) = viewer.viewers([address])
        assert not reads.full
        assert reads.socket_id == stuck.socket_id


def test_quiet_guest_with_an_idle_viewer_is_not_stuck() -> None:
    with connected('127.0.0.1') as (guest, _):
        guest.send(b'login: ')
        time.sleep(0.3)
        (found,) = viewer.viewers([guest.getsockname()])
        assert found.silent >= 0.2
        assert not found.stuck(0.1)


def test_viewer_that_half_closed_is_still_one() -> None:
    with connected('127.0.0.1') as (guest, peer):
        peer.shutdown(socket.SHUT_WR)
        assert len(viewer.viewers([guest.getsockname()])) == 1


@pytest.mark.parametrize(('bound', 'listener'), [
    ('127.0.0.1', '127.0.0.1'), (EVERY, EVERY), ('::1', '::1'),
    ('127.0.0.1', '::'), (EVERY, '127.0.0.1'), ('::', '127.0.0.1')])
def test_listener_is_found(bound: str, listener: str) -> None:
    with socket.socket(socket.AF_INET6 if ':' in bound
                       else socket.AF_INET) as server:
        server.bind((bound, 0))
        number = server.getsockname()[1]
        assert viewer.listening([(listener, number)]) == set()
        server.listen()
        assert viewer.listening([(listener, number), ('127.0.0.1', 1)]) == {
            (listener, number)}
    assert viewer.listening([(listener, number)]) == set()


@pytest.mark.parametrize('address', [
    '127.0.0.1', '::ffff:127.0.0.1', '::ffff:0.0.0.0', '0:0:0:0:0:0:0:1',
    'localhost', '127.1'])
def test_a_listener_is_found_as_an_operator_has_written_it(
        address: str) -> None:
    family, *_, sockaddr = socket.getaddrinfo(
        address, 0, type=socket.SOCK_STREAM)[0]
    with socket.socket(family) as server:
        server.bind(sockaddr)
        server.listen()
        listener = numeric(address, server.getsockname()[1])
        assert viewer.listening([listener]) == {listener}
        with (socket.create_connection((address, listener[1])),
              server.accept()[0]):
            assert len(viewer.viewers([listener])) == 1


def test_a_link_local_address_is_shown_without_its_interface() -> None:
    assert numeric('fe80::1%eth0', 10000) == ('fe80::1', 10000)


def test_listener_of_others_is_not_found() -> None:
    with socket.create_server(('127.0.0.1', 0)) as server:
        assert viewer.listening([('127.0.0.2', server.getsockname()[1])]) == (
            set())
    assert viewer.listening([]) == set()


def test_kernel_that_does_not_tell_has_no_empty_answer(
        monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOENT: its module tcp_diag is not there."""
    def missing(*args: object) -> Iterator[tuple[OSError, bytes]]:
        yield OSError(errno.ENOENT, 'No such file or directory'), b''

    monkeypatch.setattr(sock_diag, 'ask', missing)
    with pytest.raises(FileNotFoundError):
        viewer.viewers([('127.0.0.1', 1)])
    with pytest.raises(FileNotFoundError):
        viewer.listening([('127.0.0.1', 1)])


def test_many_viewers() -> None:
    with contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(connected('127.0.0.1'))
                 for _ in range(200)]
        listeners = [guest.getsockname() for guest, _ in pairs]
        found = viewer.viewers(listeners)
        assert sorted(one.local for one in found) == sorted(listeners)
