# SPDX-License-Identifier: Apache-2.0
"""A helper knows who asks it; what it gives up, test_helper.py looks at."""

import os
import pathlib
import socket

import pytest

from virtlogd_driver import peer, privileged_process


def test_the_caller_is_at_its_own_socket(
        tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / 'privsep')
    monkeypatch.setattr(privileged_process, 'option', lambda name: path)
    monkeypatch.setattr(
        peer, 'credentials',
        lambda channel: (7, 8) if channel.getpeername() == path else (1, 1))
    caller = privileged_process.caller.__wrapped__
    other, end = socket.socketpair()
    with (other, end, socket.socket(socket.AF_UNIX) as listening,
          socket.socket(socket.AF_UNIX) as channel):
        assert caller() == (0, 0)
        listening.bind(path)
        listening.listen()
        channel.connect(path)
        assert caller() == (7, 8)


def test_a_process_that_is_no_helper_asks_itself() -> None:
    assert privileged_process.caller.__wrapped__() == (
        os.getpid(), os.getuid())
