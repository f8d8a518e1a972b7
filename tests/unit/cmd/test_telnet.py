# SPDX-License-Identifier: Apache-2.0
"""The telnet protocol takes what QEMU sends, and anything else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtlogd_driver.cmd.telnet import Telnet

#: What QEMU begins with (chardev/char-socket.c): WILL ECHO, SGA and BINARY,
#: and DO BINARY.
QEMU = bytes.fromhex('fffb01 fffb03 fffb00 fffd00')


def test_what_qemu_negotiates() -> None:
    telnet = Telnet()
    assert telnet.received(QEMU + b'text') == (
        b'text', bytes.fromhex('fffd01 fffd03 fffd00 fffb00'))
    # The same once more is no change, and is not answered (RFC 854).
    assert telnet.received(QEMU) == (b'', b'')
    assert telnet.received(bytes.fromhex('fffc01 fffe00')) == (
        b'', bytes.fromhex('fffe01 fffc00'))


@pytest.mark.parametrize(('received', 'shown', 'answer'), [
    (b'a\xff\xffb', b'a\xffb', b''),
    # Terminal type is asked for, and is ours to decline.
    (b'\xff\xfd\x18.', b'.', b'\xff\xfc\x18'),
    (b'\xff\xfb\x22.', b'.', b'\xff\xfe\x22'),
    (b'\xff\xfe\x18\xff\xfc\x22.', b'.', b''),
    (b'a\xff\xf1\xff\xf9b', b'ab', b''),
    # A guest's own byte, which QEMU does not double.
    (b'\xffa', b'\xffa', b''),
    (b'\xff\xf0.', b'\xff\xf0.', b''),
    (b'\xff\xfa\x18\x01\xff\xff\xff\xf0.', b'.', b''),
    # Nor what would hide all that follows, as it does not end.
    (b'\xff\xfa' + b'.' * 100, b'\xff\xfa' + b'.' * 100, b''),
])
def test_commands(received: bytes, shown: bytes, answer: bytes) -> None:
    assert Telnet().received(received) == (shown, answer)


def test_a_typed_byte_255_is_doubled() -> None:
    assert Telnet.typed(b'a\xff\xff') == b'a\xff\xff\xff\xff'


@given(st.lists(st.binary(max_size=4) | st.sampled_from(
    (b'\xff', b'\xff\xfb', b'\xff\xfa', b'\xff\xf0', QEMU)), max_size=20))
def test_it_makes_no_difference_where_it_is_cut(pieces: list[bytes]) -> None:
    telnet = Telnet()
    parts = [telnet.received(piece) for piece in pieces]
    assert (b''.join(shown for shown, _ in parts),
            b''.join(answer for _, answer in parts)
            ) == Telnet().received(b''.join(pieces))


@given(st.binary())
def test_what_is_sent_is_received(data: bytes) -> None:
    assert Telnet().received(Telnet.typed(data)) == (data, b'')
