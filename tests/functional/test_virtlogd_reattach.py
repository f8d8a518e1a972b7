# SPDX-License-Identifier: Apache-2.0
"""Dead logs of real guests are attached again, and failures leave no harm."""

import json
import logging
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fixtures
import libvirt
import libvirt_qemu
import pytest

from tests.lab import guest
from tests.lab.command import Console
from tests.lab.daemons import LibvirtHost
from tests.lab.terminal import Terminal
from tests.lab.wait import until
from virtlogd_driver import exception
from virtlogd_driver.node import hypervisor, watch
from virtlogd_driver.virtlogd import (
    health,
    periodic,
    privileged,
    reattach,
    rpc,
    viewer,
)
from virtlogd_driver.virtlogd.port import Port

Use = Callable[[fixtures.Fixture], fixtures.Fixture]

#: Seconds for virtlogd to answer, here: it may be late, and does not hang.
TIMEOUT = 30.0


@pytest.fixture(autouse=True)
def _in_process() -> Iterator[None]:
    privileged.virtlogd_context.set_client_mode(False)
    yield
    privileged.virtlogd_context.set_client_mode(True)


class DeadLogs(fixtures.Fixture):
    """A guest with a TCP port and a pseudo terminal, whose logs are dead."""

    def __init__(self, host: LibvirtHost, burst: int = 1) -> None:
        super().__init__()
        self.host = host
        self.burst = burst
        self.logs = [host.log_directory / f'{number}.log'
                     for number in range(2)]
        self.port = guest.free_port()

    def _setUp(self) -> None:
        self.host.make_own()
        self.connection = self.host.connect()
        self.domain = self.connection.createXML(guest.domain_xml(
            self.host.directory,
            guest.boot_sector(interval=0.1, burst=self.burst, ports=2),
            [guest.tcp_serial(self.port, self.logs[0]),
             guest.pty_serial(self.logs[1])]))
        until(lambda: all(log.exists() and log.stat().st_size > 100
                          for log in self.logs), 'the guest writes')
        self.host.stop_virtlogd(signal.SIGKILL)
        self.host.start_virtlogd()

    def reattach(self, number: int, timeout: float = TIMEOUT) -> str:
        return reattach.reattach(
            self.domain, str(self.logs[number]),
            str(self.host.virtlogd_socket), timeout)

    def ports(self) -> list[Port]:
        return watch.ports_of(hypervisor.Guest(
            self.domain.UUIDString(), self.domain.name(), True, 'running',
            self.domain.XMLDesc()))

    def alive(self, number: int) -> bool:
        with rpc.Connection(
                str(self.host.virtlogd_socket), TIMEOUT) as virtlogd:
            return virtlogd.position(str(self.logs[number])) is not None

    def monitor(self, command: str) -> Any:
        answer = libvirt_qemu.qemuMonitorCommand(
            self.domain, json.dumps({'execute': command}), 0)
        return json.loads(answer)['return']

    def grows(self, number: int) -> None:
        size = self.logs[number].stat().st_size
        until(lambda: self.logs[number].stat().st_size > size + 50,
              'the log grows')

    def tainted(self) -> bool:
        output = self.host.directory / 'log' / 'qemu' / 'guest1.log'
        return 'tainted: custom-monitor' in output.read_text()


@pytest.fixture
def dead(libvirt_host: LibvirtHost, use: Use) -> DeadLogs:
    return use(DeadLogs(libvirt_host))


@pytest.mark.parametrize('number', [0, 1], ids=['tcp', 'pty'])
def test_dead_log_comes_back_and_the_console_stays(
        dead: DeadLogs, number: int) -> None:
    before = dead.domain.XMLDesc()
    assert not dead.alive(number)
    assert dead.reattach(number) == ''
    assert dead.alive(number)
    assert not dead.alive(1 - number)
    dead.grows(number)
    assert dead.domain.XMLDesc() == before
    with Terminal('127.0.0.1', dead.port) as terminal:
        terminal.type(b'typed\r')
        terminal.read_until(b'typed\r\n')
    # libvirtd's lock files for consoles.
    Path('/run/lock').mkdir(exist_ok=True)
    stream = dead.connection.newStream(0)
    dead.domain.openConsole('serial1', stream, 0)
    assert stream.recv(100)
    stream.finish()
    if number == 0:
        until(lambda: b'typed\r\n' in dead.logs[0].read_bytes(),
              'what was typed in the log')


def test_again_is_nothing_to_do(dead: DeadLogs) -> None:
    dead.reattach(0)
    taken = dead.monitor('query-fdsets')
    assert dead.reattach(0) == ''
    assert dead.monitor('query-fdsets') == taken


def test_twenty_times(dead: DeadLogs) -> None:
    descriptors, fdsets = [], set()

    def count() -> int:
        return len(os.listdir(f'/proc/{dead.host.qemu_pid("guest1")}/fd'))

    for _ in range(20):
        dead.host.stop_virtlogd(signal.SIGKILL)
        dead.host.start_virtlogd()
        for number in range(2):
            assert dead.reattach(number) == ''
        descriptors.append(count())
        fdsets.add(len(dead.monitor('query-fdsets')))
    dead.grows(0)
    dead.grows(1)
    assert len(fdsets) == 1
    # QEMU may answer before it closes one.
    until(lambda: count() <= descriptors[0], 'nothing piles up')
    found = [int(line) for line in re.findall(
        rb'line (\d{8})\r\n', dead.logs[0].read_bytes())]
    assert found == sorted(set(found))


def test_rotation_goes_on(tmp_path: Path, use: Use) -> None:
    host = use(LibvirtHost(tmp_path / 'host', max_size=4096, max_backups=2))
    dead = use(DeadLogs(host, burst=20))
    dead.reattach(0)
    backup = dead.logs[0].with_name('0.log.1')
    until(backup.exists, 'two rotations', 60)
    assert not dead.logs[0].with_name('0.log.2').exists()


def test_it_dies_with_its_guest_and_a_new_process_logs(
        dead: DeadLogs, tmp_path: Path) -> None:
    """Managed save and start of a guest whose log was attached again."""
    domain = dead.connection.defineXML(dead.domain.XMLDesc(
        libvirt.VIR_DOMAIN_XML_INACTIVE))
    dead.reattach(0)
    assert dead.tainted()
    domain.managedSave()
    assert not dead.alive(0)
    domain.create()
    assert dead.alive(0)
    dead.grows(0)


def test_managed_save_and_start_brings_it_back_too(dead: DeadLogs) -> None:
    """The remedy that messages name, where a log cannot be attached."""
    domain = dead.connection.defineXML(dead.domain.XMLDesc(
        libvirt.VIR_DOMAIN_XML_INACTIVE))
    domain.managedSave()
    domain.create()
    assert dead.alive(0)
    assert dead.alive(1)
    dead.grows(0)
    found = [int(line) for line in re.findall(
        rb'line (\d{8})\r\n', dead.logs[0].read_bytes())]
    assert found[0] == 1, 'the guest was not rebooted'
    assert found == sorted(set(found))
    assert not dead.tainted()


def test_libvirtd_restarted_after_it(dead: DeadLogs) -> None:
    dead.reattach(0)
    dead.host.stop_libvirtd(signal.SIGKILL)
    dead.host.start_libvirtd()
    dead.domain = dead.host.connect().lookupByName('guest1')
    assert dead.alive(0)
    dead.grows(0)
    assert dead.reattach(1) == ''
    dead.grows(1)


def test_viewer_is_disconnected_and_may_come_again(dead: DeadLogs) -> None:
    with Terminal('127.0.0.1', dead.port) as terminal:
        terminal.read_until(b'line')
        dead.reattach(0)
        with pytest.raises(ConnectionError):
            terminal.read_until(b'no such text')
    with Terminal('127.0.0.1', dead.port) as terminal:
        terminal.read_until(b'line')


def test_pseudo_terminal_that_moves_is_said(dead: DeadLogs) -> None:
    """Its number is not free while somebody has it open."""
    (path,) = re.findall(r"<serial type='pty'>\s*<source path='([^']+)'",
                         dead.domain.XMLDesc())
    # The domain's own /dev: the lab's, as namespaces are off.
    with open(path, 'rb', buffering=0):
        note = dead.reattach(1)
    assert path in note
    assert 'virsh console' in note
    assert dead.alive(1)
    dead.grows(1)


# Attempts that fail

class Listening(fixtures.Fixture):
    """Another program takes the guest's port when it is free for a moment."""

    def __init__(self, port: int,
                 monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self._port = port
        self._monkeypatch = monkeypatch

    def _setUp(self) -> None:
        real = reattach._open_again

        def taken(*args: Any) -> Any:
            self._monkeypatch.setattr(reattach, '_open_again', real)
            self.socket = socket.create_server(('127.0.0.1', self._port))
            self.addCleanup(self.socket.close)
            return real(*args)

        self._monkeypatch.setattr(reattach, '_open_again', taken)


def test_port_that_is_taken_meanwhile_is_waited_for(
        dead: DeadLogs, use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    thief = use(Listening(dead.port, monkeypatch))
    # QEMU may take long for each try.
    monkeypatch.setattr(reattach, '_PORT_TIMEOUT', 60.0)
    real = reattach._change
    tries = []

    def change(*args: Any) -> Any:
        tries.append(args)
        if len(tries) == 5:
            thief.socket.close()
        return real(*args)

    monkeypatch.setattr(reattach, '_change', change)
    assert dead.reattach(0) == ''
    assert len(tries) >= 5
    with Terminal('127.0.0.1', dead.port) as terminal:
        terminal.read_until(b'line')


def chardevs(dead: DeadLogs) -> list[tuple[str, str]]:
    return sorted((one['label'], one['filename'])
                  for one in dead.monitor('query-chardev'))


def unharmed(dead: DeadLogs, before: list[tuple[str, str]]) -> None:
    """As it was: interactive, without a log, nothing left behind."""
    assert chardevs(dead) == before
    held = [one for one in dead.monitor('query-fdsets') if one['fds']]
    assert len(held) == 2, "libvirt's own"
    until(lambda: not dead.alive(0), 'virtlogd closed the log again')
    with Terminal('127.0.0.1', dead.port) as terminal:
        terminal.type(b'typed\r')
        terminal.read_until(b'typed\r\n')


@pytest.mark.parametrize('failing', ['add-fd', 'chardev-change'])
def test_attempt_that_qemu_refuses_leaves_the_guest_as_it_was(
        dead: DeadLogs, monkeypatch: pytest.MonkeyPatch,
        failing: str) -> None:
    before = chardevs(dead)
    real = reattach._qmp

    def refuse(domain: libvirt.virDomain, command: str, *args: Any,
               **kwargs: Any) -> Any:
        if command == failing:
            kwargs |= {'no_such_argument': 1}
        return real(domain, command, *args, **kwargs)

    monkeypatch.setattr(reattach, '_qmp', refuse)
    with pytest.raises(exception.ReattachFailed, match='managed save'):
        dead.reattach(0)
    unharmed(dead, before)


def test_attempt_that_fails_half_way_opens_the_port_again(
        dead: DeadLogs, monkeypatch: pytest.MonkeyPatch) -> None:
    before = chardevs(dead)
    real = reattach._change
    monkeypatch.setattr(reattach, '_PORT_TIMEOUT', 0.2)

    def change(domain: libvirt.virDomain, chardev: str,
               backend: dict[str, Any], logfile: str | None) -> Any:
        if backend['type'] == 'socket' and logfile is not None:
            logfile = '/dev/fdset/999999'
        return real(domain, chardev, backend, logfile)

    monkeypatch.setattr(reattach, '_change', change)
    with pytest.raises(exception.ReattachFailed, match='fdset'):
        dead.reattach(0)
    unharmed(dead, before)


@pytest.mark.parametrize('when', ['before', 'after'])
@pytest.mark.parametrize('backend', ['null', 'socket'])
def test_libvirt_that_fails_half_way_leaves_the_console(
        dead: DeadLogs, monkeypatch: pytest.MonkeyPatch,
        backend: str, when: str) -> None:
    """Whether QEMU has done what it was told or not."""
    before = chardevs(dead)
    real = reattach._change

    def change(domain: libvirt.virDomain, chardev: str,
               wanted: dict[str, Any], logfile: str | None) -> Any:
        if wanted['type'] != backend or logfile is None:
            return real(domain, chardev, wanted, logfile)
        if when == 'after':
            real(domain, chardev, wanted, logfile)
        raise libvirt.libvirtError('Timed out')

    monkeypatch.setattr(reattach, '_change', change)
    with pytest.raises(exception.ReattachFailed, match='Timed out'):
        dead.reattach(0)
    assert chardevs(dead) == before
    with Terminal('127.0.0.1', dead.port) as terminal:
        terminal.type(b'typed\r')
        terminal.read_until(b'typed\r\n')


def test_libvirt_that_is_gone_half_way_is_said(
        dead: DeadLogs, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*args: Any) -> Any:
        dead.host.stop_libvirtd(signal.SIGKILL)
        return real(*args)

    real = reattach._open_again
    monkeypatch.setattr(reattach, '_open_again', gone)
    with pytest.raises(exception.ReattachFailed,
                       match=r'console is gone.*virtlogd-console reattach'):
        dead.reattach(0)


def test_libvirt_python_that_passes_no_descriptors(
        dead: DeadLogs, monkeypatch: pytest.MonkeyPatch) -> None:
    before = chardevs(dead)
    monkeypatch.delattr(libvirt_qemu, 'qemuMonitorCommandWithFiles')
    tainted = dead.tainted()
    with pytest.raises(exception.ReattachFailed, match='libvirt-python'):
        dead.reattach(0)
    assert dead.tainted() is tainted
    unharmed(dead, before)


def test_port_that_is_taken_for_good_is_said(
        dead: DeadLogs, use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    use(Listening(dead.port, monkeypatch))
    monkeypatch.setattr(reattach, '_PORT_TIMEOUT', 0.2)
    with pytest.raises(exception.ReattachFailed,
                       match=r'in use.*not interactive'):
        dead.reattach(0)
    assert dead.domain.isActive()
    dead.grows(0)


def cut_off(dead: DeadLogs, number: int = 0) -> None:
    """As an attempt whose process is killed half way leaves the guest."""
    log = str(dead.logs[number])
    device = reattach.find_device(dead.domain.XMLDesc(), log)
    pipe = reattach._open_pipe(
        str(dead.host.virtlogd_socket), dead.domain.UUIDString(), 'guest1',
        log, TIMEOUT)
    fdset = reattach._FIRST_FDSET
    reattach._add_fd(dead.domain, fdset, pipe)
    os.close(pipe)
    reattach._change(dead.domain, device.chardev,
                     {'type': 'null', 'data': {}}, f'/dev/fdset/{fdset}')
    assert dead.alive(number)
    if device.pty is not None:
        return
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(('127.0.0.1', dead.port))


def interactive_and_logged(dead: DeadLogs) -> None:
    assert dead.alive(0)
    dead.grows(0)
    held = [one for one in dead.monitor('query-fdsets')
            if one['fds'] and one['fdset-id'] >= reattach._FIRST_FDSET]
    assert held == []
    with Terminal('127.0.0.1', dead.port) as terminal:
        terminal.type(b'typed\r')
        terminal.read_until(b'typed\r\n')


def test_attempt_that_was_cut_off_is_completed(dead: DeadLogs) -> None:
    cut_off(dead)
    assert dead.reattach(0) == ''
    interactive_and_logged(dead)


def test_attempt_that_was_cut_off_is_completed_by_command(
        dead: DeadLogs, use: Use) -> None:
    cut_off(dead)
    console = use(Console(dead.host.uri, dead.host.virtlogd_socket))
    assert console.output('reattach', 'guest1', '--port', '0') == (
        b'guest1: the console is open again\n')
    interactive_and_logged(dead)
    assert console.output('reattach', 'guest1', '--port', '0') == (
        b'guest1: the log is alive, nothing to do\n')


def test_pseudo_terminal_of_an_attempt_that_was_cut_off(
        dead: DeadLogs, use: Use) -> None:
    dead.reattach(0)
    console = use(Console(dead.host.uri, dead.host.virtlogd_socket))
    closed = 'guest1:1: nobody listens on its console.'
    assert closed not in console.run('list').stderr.decode()
    cut_off(dead, 1)
    assert closed in console.run('list').stderr.decode()
    (logs,) = [one for one in json.loads(
        console.run('check', '--json').stdout) if one['check'] == 'Logs']
    assert logs['result'] == 'warning'
    assert f'Nobody listens on the console of {dead.ports()[1]}' in (
        logs['details'])
    assert console.output('reattach', 'guest1', '--port', '1') == (
        b'guest1:1: the console is open again\n')
    assert dead.alive(1)
    dead.grows(1)
    stream = dead.connection.newStream(0)
    dead.domain.openConsole('serial1', stream, 0)
    assert stream.recv(100)
    stream.finish()
    assert closed not in console.run('list').stderr.decode()


def test_attempt_that_was_cut_off_is_found_and_completed(
        dead: DeadLogs, monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(health, 'CLOSED_AFTER', 0.3)
    caplog.set_level(logging.INFO)
    cut_off(dead)
    dead.reattach(1)
    caplog.clear()
    task = watch.health_task(lambda: dead.connection, periodic.Settings(
        str(dead.host.virtlogd_socket), 60, TIMEOUT), heal=True)
    task.run_once()
    assert caplog.messages == [], 'it may be just for now'
    time.sleep(0.3)
    task.run_once()
    assert [message.split(' of ')[0] for message in caplog.messages] == [
        f'Nobody listens on 127.0.0.1:{dead.port}, the interactive console',
        f'{dead.ports()[0]} has its interactive console again.']
    interactive_and_logged(dead)


def test_listener_that_is_only_out_of_sight_is_left_alone(
        dead: DeadLogs, monkeypatch: pytest.MonkeyPatch) -> None:
    dead.reattach(0)
    before = chardevs(dead)
    monkeypatch.setattr(viewer, 'listening', lambda listeners: set())
    with pytest.raises(exception.ReattachFailed, match='says that'):
        dead.reattach(0)
    assert chardevs(dead) == before
    assert dead.alive(0)


def test_guest_that_ended(dead: DeadLogs) -> None:
    (port, _) = dead.ports()
    dead.domain.destroy()
    with pytest.raises(exception.GuestNotFound):
        watch.reattach_log(dead.connection, port,
                           str(dead.host.virtlogd_socket), TIMEOUT)


def test_virtlogd_down_and_hung(dead: DeadLogs) -> None:
    dead.host.stop_virtlogd()
    with pytest.raises(exception.VirtlogdDown):
        dead.reattach(0)
    dead.host.start_virtlogd()

    os.kill(dead.host.virtlogd_pid, signal.SIGSTOP)
    try:
        with pytest.raises(exception.VirtlogdHung):
            dead.reattach(0, timeout=1)
    finally:
        os.kill(dead.host.virtlogd_pid, signal.SIGCONT)
    assert dead.reattach(0) == ''
