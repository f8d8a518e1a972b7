# SPDX-License-Identifier: Apache-2.0
import datetime
import time

from virtlogd_driver.cmd import interleave
from virtlogd_driver.cmd.interleave import Interleaved


def lines(stamps: bool = False, terminal: bool = False
          ) -> tuple[Interleaved, list[bytes]]:
    written: list[bytes] = []
    return Interleaved(written.append, stamps=stamps,
                       terminal=terminal), written


def test_lines_stay_whole() -> None:
    out, written = lines()
    out.feed('a| ', b'one\r\ntw')
    out.feed('b| ', b'first\r\n')
    out.feed('a| ', b'o\r\n')
    assert written == [b'a| one\r\n', b'b| first\r\n', b'a| two\r\n']
    assert out.flush() is None


def test_a_prompt_is_shown_after_a_moment() -> None:
    out, written = lines()
    out.feed('a| ', b'login: ')
    left = out.flush()
    assert left is not None
    assert 0 < left <= interleave.PATIENCE
    assert written == []
    time.sleep(left)
    assert out.flush() is None
    assert written == [b'a| login: \n']


def test_the_rest_is_written_at_the_end() -> None:
    out, written = lines()
    out.feed('a| ', b'rest')
    out.flush(everything=True)
    assert written == [b'a| rest\n']


def test_an_endless_line_is_not_kept() -> None:
    out, written = lines()
    for _ in range(10):
        out.feed('a| ', b'x' * 10000)
    assert written[0].startswith(b'a| xxx')
    assert len(written[0]) > interleave.LONGEST


def test_a_line_cannot_pass_for_another_guests() -> None:
    out, written = lines(terminal=True)
    out.feed('a| ', b'\x1b[31mred\rb| fake\r\n')
    assert written == [b'a| \x1b[31mred\ra| b| fake\x1b[0m\n']


def test_the_time_is_that_of_the_first_byte() -> None:
    out, written = lines(stamps=True)
    before = datetime.datetime.now().astimezone()
    out.feed('', b'slow ')
    time.sleep(0.05)
    out.feed('', b'line\n')
    stamp, text = written[0].decode().split(' ', 1)
    assert text == 'slow line\n'
    late = datetime.datetime.fromisoformat(stamp) - before
    assert abs(late.total_seconds()) < 0.04
