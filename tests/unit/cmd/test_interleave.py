# SPDX-License-Identifier: Apache-2.0
import datetime
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtlogd_driver.cmd import interleave
from virtlogd_driver.cmd.control_sequences import RESET
from virtlogd_driver.cmd.interleave import Interleaved


def lines(stamps: bool = False, **options: Any
          ) -> tuple[Interleaved, list[bytes]]:
    written: list[bytes] = []
    return Interleaved(written.append, stamps=stamps, **options), written


def test_lines_stay_whole() -> None:
    out, written = lines()
    out.feed('a| ', b'one\r\ntw')
    out.feed('b| ', b'first\r\n')
    out.feed('a| ', b'o\r\n')
    assert written == [b'a| one\r\n', b'b| first\r\n', b'a| two\r\n']
    assert out.flush() is None


def test_a_line_that_pauses_is_not_cut() -> None:
    out, written = lines()
    out.feed('a| ', 'grü'.encode()[:3])
    time.sleep(interleave.PATIENCE * 1.2)
    assert out.flush() is None
    out.feed('b| ', b'between\n')
    out.feed('a| ', 'ün\n'.encode()[1:])
    assert written == [b'b| between\n', 'a| grün\n'.encode()]


def test_the_only_guest_is_not_waited_for() -> None:
    out, written = lines(alone=True)
    for data in (b'login: ', b'root\r\nPass', b'word: \n\n'):
        out.feed('> ', data)
    assert written == [b'> login: ', b'root\r\n> Pass', b'word: \n> \n']


def test_a_terminal_shows_a_prompt_after_a_moment(
        monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, 'monotonic', lambda: now)
    out, written = lines(columns=20)
    out.feed('a| ', b'\x1b[31mlogin: ')
    left = out.flush()
    assert left is not None
    assert 0 < left <= interleave.PATIENCE
    assert written == []
    now += left
    assert out.flush() is None
    assert written == [b'\r\x1b[Ka| login: ']
    out.flush()
    out.feed('b| ', b'other\n')
    assert written[1:] == [b'\r\x1b[K', b'b| other\n']
    out.flush()
    assert written[3:] == [b'\r\x1b[Ka| login: ']
    out.feed('a| ', b'root\n')
    assert written[4:] == [b'\r\x1b[K', b'a| \x1b[31mlogin: root\n']


def test_what_a_terminal_shows_for_now_stays_in_its_row() -> None:
    out, written = lines(columns=20)
    for text, shown in ((b'x' * 99, b'x' * 16), (b'a\rb\0c', b'a?b?c'),
                        ('中'.encode() * 50, '中'.encode() * 8)):
        out.feed('a| ', text)
        time.sleep(interleave.PATIENCE * 1.1)
        out.flush()
        assert written[-1] == b'\r\x1b[Ka| ' + shown
        out.feed('a| ', b'\n')


def test_the_rest_is_written_at_the_end() -> None:
    out, written = lines()
    out.feed('a| ', b'rest')
    out.close()
    assert written == [b'a| rest\n']


def test_an_endless_line_is_not_kept() -> None:
    out, written = lines()
    for _ in range(10):
        out.feed('a| ', 'ü'.encode() * 5000)
    out.feed('a| ', 'ü'.encode() * 100_000)
    assert all(len(line) <= interleave.LONGEST + 4 for line in written)
    out.close()
    assert b''.join(line[3:-1] for line in written).decode() == 'ü' * 150_000
    for line in written:
        line.decode()


def test_a_line_cannot_pass_for_another_guests() -> None:
    for alone in (False, True):
        out, written = lines(
            terminal=True, alone=alone, reset=RESET.encode())
        out.feed('a| ', b'\r\x1b[31mred\rb| fake\r\r')
        out.feed('a| ', b'\n')
        assert b''.join(written) == b'a| \x1b[31mred^Mb| fake\x1b[0m\n'


@given(st.lists(st.sampled_from(
    (b'\r', b'\n', b'x', b'\x1b[1m', b'\r' * 70_000)), max_size=12),
    st.booleans(), st.booleans())
def test_what_is_written_grows_with_what_came(
        pieces: list[bytes], alone: bool, stamps: bool) -> None:
    """A label a line, whatever is in it."""
    out, written = lines(
        stamps, terminal=True, alone=alone, reset=RESET.encode())
    for piece in pieces:
        out.feed('guest | ', piece)
    out.close()
    came = b''.join(pieces)
    count = came.count(b'\n') + len(came) // interleave.LONGEST + 1
    label = len('guest | ') + len(interleave.stamp(0)) + 1
    assert len(b''.join(written)) <= 2 * len(came) + count * (
        label + len(RESET) + 2)


def test_the_time_is_that_of_the_first_byte() -> None:
    out, written = lines(stamps=True)
    before = datetime.datetime.now().astimezone()
    out.feed('', b'slow ')
    after = datetime.datetime.now().astimezone()
    time.sleep(0.05)
    out.feed('', b'line\n')
    stamp, text = written[0].decode().split(' ', 1)
    assert text == 'slow line\n'
    millisecond = datetime.timedelta(milliseconds=1)
    assert (before - millisecond <= datetime.datetime.fromisoformat(stamp)
            <= after)
