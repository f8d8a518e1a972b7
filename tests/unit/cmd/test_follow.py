# SPDX-License-Identifier: Apache-2.0
"""follow says which logs it cannot follow byte by byte."""

import io
import queue
import re
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit import fake_libvirt
from virtlogd_driver import exception
from virtlogd_driver.cmd import follow
from virtlogd_driver.cmd.host import SerialPort, serial_port
from virtlogd_driver.console_log.log import LogSince
from virtlogd_driver.node.hypervisor import Guest

LOG = '/var/log/guest.log'


@pytest.fixture
def port() -> SerialPort:
    return serial_port(Guest('uuid', 'guest', True, 'running',
                             fake_libvirt.domain_xml(
                                 fake_libvirt.serial(log=LOG))), 0)


class Reads:
    """A Follower with the answers given."""

    def __init__(self, *answers: LogSince | Exception | None) -> None:
        self._answers = list(answers)

    def read(self, _path: str) -> LogSince | None:
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def drain(port: SerialPort, *answers: LogSince | Exception) -> None:
    screen = follow._Screen({LOG: ''}, stamps=False, raw=False)
    reads: Any = Reads(*answers)
    follow._drain(reads, LOG, port, screen, follow._Files())
    screen.close()


def test_what_was_rotated_away_is_said(
        port: SerialPort, capfd: pytest.CaptureFixture[str]) -> None:
    drain(port, LogSince(b'one\n', None, 0, 9), LogSince(b'two\n', None, 5, 0))
    out, err = capfd.readouterr()
    assert out == 'one\ntwo\n'
    assert 'guest: 5 bytes were rotated away' in err


def test_a_log_that_begins_anew_is_said(
        port: SerialPort, capfd: pytest.CaptureFixture[str]) -> None:
    drain(port, LogSince(b'new\n', None, None, 0))
    out, err = capfd.readouterr()
    assert out == 'new\n'
    assert 'guest: the log begins anew; output may be missing' in err


def test_an_error_is_said_and_no_end(
        port: SerialPort, capfd: pytest.CaptureFixture[str]) -> None:
    drain(port, exception.LogRefused('it may not be read'))
    out, err = capfd.readouterr()
    assert out == ''
    assert 'guest: it may not be read' in err


def test_an_error_is_said_once_until_the_log_can_be_read(
        port: SerialPort, capfd: pytest.CaptureFixture[str]) -> None:
    refused = exception.LogRefused('it may not be read')
    reads: Any = Reads(refused, refused, LogSince(b'one\n', None, 0, 0),
                       refused)
    screen = follow._Screen({LOG: ''}, stamps=False, raw=False)
    for _ in range(4):
        follow._read(reads, LOG, port, screen, follow._Files())
    screen.close()
    out, err = capfd.readouterr()
    assert out == 'one\n'
    assert err.count('guest: it may not be read') == 2


class Waits(Reads):
    """It has more each time; the guest leaves with the last of it."""

    def __init__(self, *answers: LogSince | None) -> None:
        super().__init__(*answers, None)
        self.news: queue.SimpleQueue[tuple[str, None]] = queue.SimpleQueue()

    def wait(self, _timeout: float) -> list[str]:
        if len(self._answers) == 1:
            self.news.put(('uuid', None))
            return []
        return [LOG]

    def remove(self, _path: str) -> None:
        pass


@pytest.mark.parametrize(('seconds', 'answers', 'times'), [
    (0.0, (LogSince(b'', None, 0, 0), None, None), 1),
    (0.0, (None, None), 0),
    (60.0, (LogSince(b'', None, 0, 0), None, None), 0)],
    ids=['gone', 'not yet there', 'its guest has left, too'])
def test_a_log_that_has_no_file_any_more_is_said(
        port: SerialPort, capfd: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch, seconds: float,
        answers: tuple[LogSince | None, ...], times: int) -> None:
    monkeypatch.setattr(follow, '_GONE', seconds)
    waits: Any = Waits(*answers)
    screen = follow._Screen({LOG: ''}, stamps=False, raw=False)
    follow._follow(waits, {LOG: port}, waits, screen)
    said = capfd.readouterr().err
    assert said.count(f'guest: {LOG} is not there any more') == times
    assert 'guest is on this host no more' in said


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


_PIECES = st.sampled_from((
    b'text', b'\n', b'\r', b'\r\n', b'\x1b[31m', b'\x1b[', b'8m', b'\x1b]0;',
    b'\x1b[?25l', 'ü'.encode()[:1], b'-- ours --', b'\x1b[7', b'\x1b[1;8m'))


@given(st.lists(st.one_of(_PIECES, st.none()), max_size=20), st.booleans(),
       st.booleans())
def test_our_own_words_are_in_a_row_of_their_own_as_they_are(
        pieces: list[bytes | None], stamps: bool, several: bool) -> None:
    """Whatever a guest has written before: nothing of it lasts."""
    out = Terminal(io.BytesIO(), encoding='utf-8', newline='')
    with (mock.patch('sys.stdout', out),
          mock.patch.dict('os.environ', {'TERM': 'xterm', 'NO_COLOR': ''})):
        screen = follow._Screen(
            {LOG: 'a| ', 'other': 'b| '} if several else {LOG: ''},
            stamps=stamps, raw=False)
        for piece in pieces:
            if piece is None:
                screen.say('these are ours')
            else:
                screen.put(LOG, piece)
            screen.flush()
        screen.close()
        out.flush()
    written = out.buffer.getvalue().decode()
    said = written.split('\x1b[2m-- these are ours --\x1b[0m\n')
    assert len(said) == pieces.count(None) + 1
    assert all(map(is_fresh, said))


def is_fresh(text: str) -> bool:
    """Whether a terminal is in an empty row after it, with no look left."""
    looks = row = False
    for match in re.finditer(r'\x1b\[([0-9;?]*)([A-Za-z])|[^\x1b]', text):
        if match[2] == 'm':
            looks = match[1] != '0'
        elif match[2] == 'K' or match[0] == '\n':
            row = False
        elif match[0] != '\r':
            row = True
    return not looks and not row
