# SPDX-License-Identifier: Apache-2.0
"""Others change a host's logs, and give its guests devices of their own."""

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import fixtures
import libvirt
import pytest

from tests.lab import guest
from tests.lab.command import Console
from tests.lab.daemons import LibvirtHost
from tests.lab.wait import until
from virtlogd_driver.node import watch
from virtlogd_driver.virtlogd import clients, health, privileged, viewer
from virtlogd_driver.virtlogd.health import DaemonState, LogState, Report

Use = Callable[[fixtures.Fixture], fixtures.Fixture]


@pytest.fixture(autouse=True)
def _in_process() -> Iterator[None]:
    privileged.virtlogd_context.set_client_mode(False)
    yield
    privileged.virtlogd_context.set_client_mode(True)


def domain(host: LibvirtHost, devices: str, name: str = 'guest1',
           interval: float = 0.1, ports: int = 1) -> libvirt.virDomain:
    """A running guest with these devices, as XML."""
    host.make_own()
    xml = guest.domain_xml(
        host.directory, guest.boot_sector(interval=interval, ports=ports), [],
        name=name)
    return host.connect().createXML(
        xml.replace('</devices>', f'{devices}</devices>'))


def tcp(log: Path, port: int | str, protocol: str = 'raw',
        target: str = '') -> str:
    return (f"<serial type='tcp'><source mode='bind' host='127.0.0.1' "
            f"service='{port}'/><protocol type='{protocol}'/>"
            f"<log file='{log}' append='on'/>{target}</serial>")


def written(log: Path) -> None:
    """Wait until more is written into the file at this path."""
    def size() -> int:
        # Without backups there is none while virtlogd begins it anew.
        with contextlib.suppress(FileNotFoundError):
            return log.stat().st_size
        return -1
    before = size()
    until(lambda: size() > max(before, 0), f'more in {log}')


def look(host: LibvirtHost) -> Report:
    """A health pass."""
    connection = host.connect()
    path = str(host.virtlogd_socket)
    return health.examine(
        lambda: watch.list_ports(connection, off=True), path, 5,
        list_viewers=viewer.viewers, listening=viewer.listening,
        find=health.find_unlinked(path, 5))


def states(report: Report) -> dict[int, LogState]:
    return {log.port.number: log.state for log in report.logs}


def reattach(host: LibvirtHost, number: int = 0) -> str:
    connection = host.connect()
    (port,) = [port for port in watch.list_ports(connection)
               if port.number == number]
    return watch.reattach_log(connection, port, str(host.virtlogd_socket), 5)


# Files that are taken away

def remove(log: Path) -> None:
    log.unlink()


def rename(log: Path) -> None:
    """As logrotate does without copytruncate."""
    log.rename(f'{log}-20261125')


def replace(log: Path) -> None:
    other = log.with_name('other')
    other.write_bytes(b'of an editor\n')
    other.rename(log)


@pytest.mark.parametrize('take', [remove, rename, replace])
def test_a_log_that_is_taken_away_is_found_and_brought_back(
        libvirt_host: LibvirtHost, use: Use,
        take: Callable[[Path], None]) -> None:
    log = libvirt_host.log_directory / 'a' / 'console.log'
    log.parent.mkdir()
    port = guest.free_port()
    domain(libvirt_host, tcp(log, port))
    written(log)
    assert states(look(libvirt_host)) == {0: LogState.ALIVE}
    take(log)
    assert states(look(libvirt_host)) == {0: LogState.UNLINKED}

    console = use(Console(libvirt_host.uri, libvirt_host.virtlogd_socket))
    listed = console.run('list', '--json')
    assert json.loads(listed.stdout)[0]['log'] == 'unlinked'
    assert b'virtlogd-console reattach guest1' in console.run('list').stderr
    brought = console.run('reattach', 'guest1')
    assert brought.stdout == b'guest1: the log is alive again\n', (
        brought.stderr)
    assert states(look(libvirt_host)) == {0: LogState.ALIVE}
    written(log)
    with socket.create_connection(('127.0.0.1', port), 5) as client:
        client.settimeout(30)
        assert client.recv(100)
    # What was written into the old file is there, if it was kept.
    assert reattach(libvirt_host) == ''


def test_a_log_of_a_pseudo_terminal_and_of_a_file(
        libvirt_host: LibvirtHost) -> None:
    logs = [libvirt_host.log_directory / name for name in ('pty', 'file')]
    domain(libvirt_host,
           f"<serial type='pty'><log file='{logs[0]}' append='on'/></serial>"
           f"<serial type='file'><source path='{logs[1]}' append='on'/>"
           '</serial>', ports=2)
    for log in logs:
        written(log)
        log.unlink()
    assert states(look(libvirt_host)) == dict.fromkeys(
        range(2), LogState.UNLINKED)
    for number in range(2):
        reattach(libvirt_host, number)
    assert states(look(libvirt_host)) == dict.fromkeys(
        range(2), LogState.ALIVE)
    for log in logs:
        written(log)


def test_a_paused_guest_says_that_it_keeps_its_log(
        libvirt_host: LibvirtHost) -> None:
    log = libvirt_host.log_directory / 'console.log'
    running = domain(libvirt_host, tcp(log, guest.free_port()))
    written(log)
    running.suspend()
    log.unlink()
    with pytest.raises(Exception, match='resume it first'):
        reattach(libvirt_host)
    running.resume()
    assert reattach(libvirt_host) == ''
    written(log)


@pytest.mark.parametrize('backups', [0, 1, 3])
def test_rotation_is_no_false_alarm(use: Use, tmp_path: Path,
                                    backups: int) -> None:
    """A guest that writes flat out into files of 4 KiB."""
    host = LibvirtHost(tmp_path / 'host1', max_size=4096, max_backups=backups)
    use(host)
    log = host.log_directory / 'console.log'
    domain(host, tcp(log, guest.free_port()), interval=0)
    written(log)
    find = health.find_unlinked(str(host.virtlogd_socket), 5)
    inodes = set()
    for looks in itertools.count(1):
        with contextlib.suppress(FileNotFoundError):
            inodes.add(os.stat(log).st_ino)
        found = find([str(log)])
        assert not found.unlinked
        assert not found.unseen
        # It has rotated meanwhile.
        if looks >= 1000 and (not backups or len(inodes) > 1):
            break
    # Nothing begins a new file any more.
    host.connect().lookupByName('guest1').suspend()
    host.wait_until_written()
    assert not find([str(log)]).unlinked
    log.rename(f'{log}.away')
    assert find([str(log)]).unlinked == {str(log)}


# virtlogd and the guest's pipe

def test_more_clients_than_virtlogd_takes(
        libvirt_host: LibvirtHost, use: Use) -> None:
    libvirt_host.stop_virtlogd()
    libvirt_host.virtlogd_conf.write_text(
        libvirt_host.virtlogd_conf.read_text() + 'max_clients = 2\n')
    libvirt_host.start_virtlogd()
    log = libvirt_host.log_directory / 'console.log'
    domain(libvirt_host, tcp(log, guest.free_port()))
    console = use(Console(libvirt_host.uri, libvirt_host.virtlogd_socket))
    Path(console.command[console.command.index('--config-file') + 1]
         ).write_text('[virtlogd]\n'
                      f'virtlogd_socket = {libvirt_host.virtlogd_socket}\n'
                      f'virtlogd_conf = {libvirt_host.virtlogd_conf}\n'
                      'health_timeout = 1\n')
    with contextlib.ExitStack() as held:
        for _ in range(2):
            client = held.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(libvirt_host.virtlogd_socket))
        until(lambda: clients.count(
            str(libvirt_host.virtlogd_socket)).accepted == 2, 'it has both')
        listed = console.run('list')
        assert b'max_clients is 2' in listed.stderr
        assert b'SIGCONT' not in listed.stderr
        written(log)
    until(lambda: look(libvirt_host).daemon is DaemonState.UP, 'it answers')
    # One that is stopped is still told to be hung.
    os.kill(libvirt_host.virtlogd_pid, signal.SIGSTOP)
    try:
        listed = console.run('list')
        assert b'SIGCONT' in listed.stderr
    finally:
        os.kill(libvirt_host.virtlogd_pid, signal.SIGCONT)


def test_a_log_that_is_held_after_its_guest_has_ended(
        libvirt_host: LibvirtHost, use: Use) -> None:
    log = libvirt_host.log_directory / 'console.log'
    libvirt_host.make_own()
    one = libvirt_host.connect().defineXML(guest.domain_xml(
        libvirt_host.directory, guest.boot_sector(interval=0.1),
        [guest.tcp_serial(guest.free_port(), log)]))
    one.create()
    written(log)
    pid = libvirt_host.qemu_pid('guest1')
    pipes = [f'/proc/{pid}/fd/{fd}' for fd in os.listdir(f'/proc/{pid}/fd')
             if os.readlink(f'/proc/{pid}/fd/{fd}').startswith('pipe:')]
    holder = subprocess.Popen(
        [sys.executable, '-c',
         'import os, sys\n'
         'for path in sys.argv[1:]:\n'
         '    os.open(path, os.O_WRONLY | os.O_NONBLOCK)\n'
         'print("ready", flush=True)\n'
         'sys.stdin.read()', *pipes],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b'ready\n'
        one.destroy()
        assert states(look(libvirt_host)) == {0: LogState.HELD}
        with pytest.raises(libvirt.libvirtError, match='busy'):
            one.create()
        console = use(Console(libvirt_host.uri,
                              libvirt_host.virtlogd_socket))
        listed = console.run('list', '--json')
        assert json.loads(listed.stdout)[0]['log'] == 'held'
        for command in (console.run('list'),
                        console.run('reattach', 'guest1')):
            assert b'Do not restart virtlogd' in command.stderr
    finally:
        holder.communicate()
    until(lambda: states(look(libvirt_host)) == {}, 'the log is closed')
    one.create()
    assert states(look(libvirt_host)) == {0: LogState.ALIVE}


# Devices that this driver gives nobody

def test_whatever_libvirt_runs_is_watched_and_brought_back(
        libvirt_host: LibvirtHost) -> None:
    directory = libvirt_host.log_directory
    logs = {name: directory / name for name in (
        'service', 'telnet', 'unix', 'virtio')}
    domain(libvirt_host,
           tcp(logs['service'], 'http-alt')
           + tcp(logs['telnet'], guest.free_port(), 'telnet')
           + f"<serial type='unix'><source mode='bind' "
             f"path='{directory}/sock'/><log file='{logs['unix']}' "
             f"append='on'/></serial>"
           + "<console type='tcp'><target type='serial' port='0'/></console>"
             f"<console type='pty'><log file='{logs['virtio']}' "
             f"append='on'/><target type='virtio'/></console>", ports=3)
    for name in ('service', 'telnet', 'unix'):
        written(logs[name])
    ports = watch.list_ports(libvirt_host.connect())
    assert [(port.number, port.log, port.unclear) for port in ports] == [
        (number, str(log), '') for number, log in enumerate(logs.values())]
    assert ports[0].listener == ('127.0.0.1', 8080)
    assert states(look(libvirt_host)) == dict.fromkeys(
        range(4), LogState.ALIVE)
    libvirt_host.stop_virtlogd(signal.SIGKILL)
    libvirt_host.start_virtlogd()
    assert states(look(libvirt_host)) == dict.fromkeys(
        range(4), LogState.DEAD)
    for number in range(4):
        reattach(libvirt_host, number)
    report = look(libvirt_host)
    assert states(report) == dict.fromkeys(range(4), LogState.ALIVE)
    assert report.unopened == ()
    for name in ('service', 'telnet', 'unix'):
        written(logs[name])
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(f'{directory}/sock')
        assert client.recv(100)
    assert not (directory / '.v').exists()


def test_the_only_port_is_the_guests_second_one(
        libvirt_host: LibvirtHost, use: Use) -> None:
    log = libvirt_host.log_directory / 'console.log'
    domain(libvirt_host, tcp(log, guest.free_port(),
                             target="<target port='1'/>"), ports=2)
    written(log)
    console = use(Console(libvirt_host.uri, libvirt_host.virtlogd_socket))
    (row,) = json.loads(console.output('list', '--json'))
    assert row['port'] == 1
    assert b'line' in console.output('show', 'guest1', '--port', '1')
    refused = console.run('show', 'guest1', '--port', '0')
    assert b'it has 1' in refused.stderr
