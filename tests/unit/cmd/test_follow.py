# SPDX-License-Identifier: Apache-2.0
"""What is said of a log that cannot be followed byte by byte."""

from typing import Any

import pytest

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

    def __init__(self, *answers: LogSince | Exception) -> None:
        self._answers = list(answers)

    def read(self, _path: str) -> LogSince:
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def drain(port: SerialPort, *answers: LogSince | Exception) -> None:
    screen = follow._Screen({LOG: ''}, stamps=False, raw=False)
    reads: Any = Reads(*answers)
    follow._drain(reads, LOG, port, screen)
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
