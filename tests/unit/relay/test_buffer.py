# SPDX-License-Identifier: Apache-2.0
"""A buffer keeps what waits for a viewer."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtlogd_driver.relay.buffer import Buffer, line_start

MISSING = re.compile(
    rb'(?:\r\n)?\[console relay: (\d+) bytes are missing here, [^\]]*\]\r\n')


def _all(buffer: Buffer) -> bytes:
    found = b''
    while taken := buffer.take(7):
        found += taken
    return found


def test_nothing_is_dropped_within_the_limit() -> None:
    buffer = Buffer(10)
    buffer.add(b'one\n')
    buffer.add(b'two\nx\n')
    assert len(buffer) == 10
    assert _all(buffer) == b'one\ntwo\nx\n'


def test_the_oldest_whole_lines_are_dropped_and_it_is_said() -> None:
    buffer = Buffer(12)
    buffer.add(b'one\ntwo\nthree\nfour')
    assert _all(buffer) == (
        b'[console relay: 8 bytes are missing here, as this viewer did not '
        b'read fast enough]\r\nthree\nfour')
    assert buffer.dropped == 8


def test_a_line_that_was_begun_is_sent_to_its_end() -> None:
    buffer = Buffer(20)
    buffer.add(b'first line\n')
    assert buffer.take(5) == b'first'
    buffer.add(b'second\nthird line\n')
    text = _all(buffer)
    assert text.startswith(b' line\n[console relay: 7 bytes')
    assert text.endswith(b']\r\nthird line\n')


def test_it_is_said_once_however_often_lines_are_dropped() -> None:
    buffer = Buffer(16)
    for number in range(1000):
        buffer.add(b'%07d\n' % number)
    text = _all(buffer)
    assert MISSING.findall(text) == [b'7984']
    assert text.endswith(b']\r\n0000998\n0000999\n')


def test_a_line_without_end_is_cut_between_characters() -> None:
    buffer = Buffer(8)
    buffer.add('äöüäöü'.encode())
    assert _all(buffer).decode().endswith(']\r\nüäöü')
    assert buffer.dropped == 4


def test_a_message_begins_a_line() -> None:
    buffer = Buffer(8)
    buffer.add(b'abc')
    assert buffer.take(3) == b'abc'
    buffer.add(b'defghijklmnop')
    assert _all(buffer).startswith(b'\r\n[console relay: ')


@pytest.mark.parametrize(('data', 'at', 'start'), [
    (b'a\nb\n', 0, 0), (b'a\nb\n', 1, 2), (b'a\nb\n', 2, 2),
    (b'ab', 1, 1), ('aä'.encode(), 2, 3), (b'a' + b'\x80' * 9, 1, 5)])
def test_line_start(data, at, start) -> None:
    assert line_start(data, at) == start


@given(st.integers(20, 60), st.lists(st.one_of(
    st.binary(min_size=1, max_size=30), st.integers(1, 40)), max_size=60))
def test_what_is_sent_and_what_is_missing_is_all(limit, steps) -> None:
    """In order, and never more than the limit in memory."""
    buffer, written, sent = Buffer(limit), b'', b''
    for step in steps:
        if isinstance(step, bytes):
            step = step.replace(b'[', b'(')
            written += step
            buffer.add(step)
            assert len(buffer) <= limit + 150   # a message in a half line
        else:
            sent += buffer.take(step)
    sent += _all(buffer)
    at = 0
    for index, part in enumerate(MISSING.split(sent)):
        if index % 2:
            at += int(part)
        else:
            assert written[at:at + len(part)] == part
            at += len(part)
    assert at == len(written)
