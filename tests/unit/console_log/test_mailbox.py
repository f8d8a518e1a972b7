# SPDX-License-Identifier: Apache-2.0
"""Bytes from one process to another, past whoever else writes to the box."""

import array
import contextlib
import os
import pathlib
import socket

import pytest

from virtlogd_driver.console_log import mailbox

DATA = os.urandom(mailbox.WORTHWHILE)


def descriptors() -> int:
    return len(os.listdir('/proc/self/fd'))


def send(box: mailbox.Mailbox, message: bytes, *files: int) -> None:
    name, _ = box.address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendmsg(
            [message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS,
                         array.array('i', files))],
            socket.MSG_DONTWAIT, name)


@pytest.mark.parametrize('size', [mailbox.WORTHWHILE, 8 << 20])
def test_posted_and_taken(size: int) -> None:
    data = os.urandom(size)
    before = descriptors()
    with mailbox.Mailbox() as box:
        assert mailbox.post(box.address, data)
        assert box.take() == data
        assert box.take() is None
    assert descriptors() == before


def test_from_another_process() -> None:
    with mailbox.Mailbox() as box:
        child = os.fork()
        if child == 0:
            os._exit(0 if mailbox.post(box.address, DATA) else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert box.take() == DATA


def test_nothing_is_posted() -> None:
    assert not mailbox.post(None, DATA)
    with mailbox.Mailbox() as box:
        assert not mailbox.post(box.address, DATA[1:])
        assert box.take() is None
    assert not mailbox.post(box_that_is_closed(), DATA)


def box_that_is_closed() -> mailbox.Address:
    with mailbox.Mailbox() as box:
        return box.address


def test_what_others_send_is_thrown_away(tmp_path: pathlib.Path) -> None:
    (tmp_path / 'forged').write_bytes(b'forged' * mailbox.WORTHWHILE)
    before = descriptors()
    with mailbox.Mailbox() as box, (tmp_path / 'forged').open() as forged:
        _, secret = box.address
        send(box, b'x' * len(secret), forged.fileno())
        send(box, secret + b'x', forged.fileno(), forged.fileno())
        send(box, secret)
        assert mailbox.post(box.address, DATA)
        assert box.take() == DATA
        send(box, secret[:-1], forged.fileno())
        assert box.take() is None
    assert descriptors() == before


def test_a_full_box_keeps_nobody_waiting() -> None:
    with mailbox.Mailbox() as box:
        with contextlib.suppress(BlockingIOError):
            while True:
                send(box, b'flood')
        assert not mailbox.post(box.address, DATA)
        assert box.take() is None
        assert mailbox.post(box.address, DATA)
        assert box.take() == DATA
