# SPDX-License-Identifier: Apache-2.0
"""``virtlogd-console reattach`` says what it does, and leaves others alone."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit import fake_libvirt
from virtlogd_driver import exception
from virtlogd_driver.cmd import reattach
from virtlogd_driver.node.hypervisor import Guest

ARGUMENTS = SimpleNamespace(guest='guest', port=None)


class Host:
    """A Host with one guest of two ports, and virtlogd's answers."""

    def __init__(self, active: bool = True, virtlogd: str = 'up',
                 states: tuple[str, str] = ('dead', 'alive'),
                 open_ports: tuple[int, ...] = (0, 1),
                 error: Exception | None = None) -> None:
        self._guest = Guest(
            'uuid', 'guest', active, 'running' if active else 'shut off',
            fake_libvirt.domain_xml(
                fake_libvirt.serial() + fake_libvirt.serial(1, 10001)))
        self._virtlogd = virtlogd
        self._states = states
        self._open = open_ports
        self._error = error
        self.reattached: list[int] = []

    def guest(self, _word: str) -> Guest:
        return self._guest

    def virtlogd(self) -> tuple[str, str]:
        return self._virtlogd, f'virtlogd is {self._virtlogd}.'

    def log_states(self, _ports: Any) -> tuple[str, str]:
        return self._states

    def closed(self, ports: Any) -> list[Any]:
        return [port for port in ports if port.number not in self._open]

    def reattach(self, port: Any) -> str:
        if self._error is not None:
            raise self._error
        self.reattached.append(port.number)
        return ''


def test_only_what_is_dead(capsys: pytest.CaptureFixture[str]) -> None:
    host: Any = Host()
    assert reattach.run(host, ARGUMENTS) == 0
    assert host.reattached == [0]
    assert capsys.readouterr().out == (
        'guest: the log is alive again\n'
        'guest:1: the log is alive, nothing to do\n')


def test_a_console_that_nobody_listens_on(
        capsys: pytest.CaptureFixture[str]) -> None:
    host: Any = Host(states=('alive', 'alive'), open_ports=(0,))
    assert reattach.run(host, ARGUMENTS) == 0
    assert host.reattached == [1]
    assert ('guest:1: the console is open again'
            in capsys.readouterr().out)


def test_one_that_fails_does_not_keep_the_others(
        capsys: pytest.CaptureFixture[str]) -> None:
    host: Any = Host(states=('dead', 'dead'),
                     error=exception.ReattachFailed('busy'))
    assert reattach.run(host, ARGUMENTS) == 1
    assert capsys.readouterr().err == 'guest: busy\nguest:1: busy\n'


def test_a_guest_that_does_not_run() -> None:
    host: Any = Host(active=False)
    with pytest.raises(exception.ReattachFailed, match='is shut off'):
        reattach.run(host, ARGUMENTS)


def test_a_log_whose_file_is_elsewhere() -> None:
    host: Any = Host(states=('alive', 'unlinked'))
    assert reattach.run(host, ARGUMENTS) == 0
    assert host.reattached == [1]


def test_a_guest_that_is_off_and_whose_log_is_held() -> None:
    host: Any = Host(active=False, states=('held', '-'))
    with pytest.raises(exception.ReattachFailed, match='lsof') as raised:
        reattach.run(host, ARGUMENTS)
    assert 'Do not restart virtlogd' in str(raised.value)


def test_without_virtlogd() -> None:
    host: Any = Host(virtlogd='down')
    with pytest.raises(exception.VirtlogdDown, match='virtlogd is down'):
        reattach.run(host, ARGUMENTS)
