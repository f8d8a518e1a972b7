# SPDX-License-Identifier: Apache-2.0
"""The kernel counts the connections to real unix sockets."""

import contextlib
import pathlib
import socket

import pytest

from virtlogd_driver.virtlogd import clients, settings
from virtlogd_driver.virtlogd.clients import Clients


def test_accepted_and_waiting_connections_are_told_apart(
        tmp_path: pathlib.Path) -> None:
    path, other = str(tmp_path / 'sock'), str(tmp_path / 'other')
    with contextlib.ExitStack() as stack:
        def listen(name: str) -> socket.socket:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(name)
            listener.listen(8)
            return listener

        def connect(name: str) -> None:
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(name)

        listener, another = listen(path), listen(other)
        assert clients.count(path) == Clients(0, 0)
        for _ in range(3):
            connect(path)
        connect(other)
        stack.enter_context(another.accept()[0])
        assert clients.count(path) == Clients(0, 3)
        for _ in range(2):
            stack.enter_context(listener.accept()[0])
        assert clients.count(path) == Clients(2, 1)
        assert clients.refused(path, 3) == ''
        assert 'max_clients is 2' in clients.refused(path, 2)


def test_a_socket_that_is_not_there(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError):
        clients.count(str(tmp_path / 'none'))
    assert clients.refused(str(tmp_path / 'none'), 1) == ''


def test_none_is_allowed(tmp_path: pathlib.Path) -> None:
    """As who wants no limit writes it; virtlogd then accepts one."""
    path, conf = str(tmp_path / 'sock'), tmp_path / 'virtlogd.conf'
    conf.write_text('max_clients = 0\n')
    allowed = settings.read_max_clients(str(conf))
    with (socket.socket(socket.AF_UNIX) as listener,
          socket.socket(socket.AF_UNIX) as client):
        listener.bind(path)
        listener.listen()
        assert clients.refused(path, allowed) == ''
        client.connect(path)
        with listener.accept()[0]:
            assert 'max_clients is 0' in clients.refused(path, allowed)
