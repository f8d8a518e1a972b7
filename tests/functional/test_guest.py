# SPDX-License-Identifier: Apache-2.0
"""The lab's hosts leave nothing behind, and its guest writes known lines."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import fixtures
import libvirt
import psutil
import pytest
from fixtures import MultipleExceptions
from lxml.builder import E

from tests.lab import guest
from tests.lab.daemons import LibvirtHost
from tests.lab.terminal import Terminal
from tests.lab.wait import until

Use = Callable[[fixtures.Fixture], fixtures.Fixture]


def whole_log(path: Path) -> bytes:
    """A rotated log, oldest first. Nobody may write it meanwhile."""
    backups = sorted(path.parent.glob(f'{path.name}.*'),
                     key=lambda backup: -int(backup.suffix[1:]))
    return b''.join(file.read_bytes() for file in [*backups, path])


def ends(path: Path, end: bytes) -> bool:
    """Whether a log that may be rotated meanwhile ends with this."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes().endswith(end)
    return False


def start(host: LibvirtHost, sector: bytes,
          serials: list[object], name: str = 'guest1') -> libvirt.virDomain:
    xml = guest.domain_xml(host.directory, sector, serials, name=name)
    return host.connect().createXML(xml)


def test_a_log_and_a_console_at_once(libvirt_host: LibvirtHost,
                                     use: Use) -> None:
    port = guest.free_port()
    log = libvirt_host.log_directory / 'console.log'
    start(libvirt_host, guest.boot_sector(b'The text\r\n', count=3),
          [guest.tcp_serial(port, log)])
    until(lambda: ends(log, guest.lines(3, 3)), 'all lines')
    terminal = use(Terminal('127.0.0.1', port))
    terminal.type(b'typed\r')
    terminal.read_until(b'typed\r\n')
    until(lambda: log.read_bytes().endswith(b'typed\r\n'), 'echo in the log')
    assert log.read_bytes() == (
        b'The text\r\n' + guest.lines(1, 3) + b'typed\r\n')


def test_flat_out_no_byte_is_lost(tmp_path: Path, use: Use) -> None:
    host = use(LibvirtHost(tmp_path / 'host', max_size=65536, max_backups=32))
    log = host.log_directory / 'console.log'
    last = 50000
    start(host, guest.boot_sector(count=last), [guest.pty_serial(log)])
    end = guest.lines(last, last)
    until(lambda: ends(log, end), 'the end')
    assert whole_log(log) == guest.lines(1, last)
    assert log.with_name('console.log.0').stat().st_size <= 65536


def test_typed_text_stays_in_one_piece(libvirt_host: LibvirtHost,
                                       use: Use) -> None:
    port = guest.free_port()
    start(libvirt_host, guest.boot_sector(), [guest.tcp_serial(port)])
    terminal = use(Terminal('127.0.0.1', port))
    terminal.type(b'among many lines\r')
    terminal.read_until(b'\r\namong many lines\r\n')


def test_four_ports(libvirt_host: LibvirtHost, use: Use) -> None:
    ports = guest.free_ports(4)
    logs = [libvirt_host.log_directory / f'{n}.log' for n in range(4)]
    start(libvirt_host, guest.boot_sector(count=2, ports=4),
          [guest.tcp_serial(port, log)
           for port, log in zip(ports, logs, strict=True)])
    for log in logs:
        until(lambda log=log: log.exists()  # type: ignore[misc]
              and log.read_bytes() == guest.lines(1, 2), 'all lines')
    for number, port in enumerate(ports):
        terminal = use(Terminal('127.0.0.1', port))
        terminal.type(b'to port %d\r' % number)
        terminal.read_until(b'to port %d\r\n' % number)
    for number, log in enumerate(logs):
        expected = guest.lines(1, 2) + b'to port %d\r\n' % number
        until(lambda log=log, expected=expected:  # type: ignore[misc]
              log.read_bytes() == expected, f'the log of port {number}')


def test_it_goes_on_without_its_first_port(libvirt_host: LibvirtHost) -> None:
    log = libvirt_host.log_directory / 'console.log'
    second = guest.pty_serial(log)
    second.append(E.target(port='1'))
    start(libvirt_host, guest.boot_sector(count=100, ports=2), [second])
    until(lambda: ends(log, guest.lines(1, 100)), 'all lines')


def test_pace(libvirt_host: LibvirtHost) -> None:
    log = libvirt_host.log_directory / 'console.log'
    begin = time.monotonic()
    start(libvirt_host,
          guest.boot_sector(interval=4 * guest.TICK, burst=5),
          [guest.pty_serial(log)])
    tenth = len(guest.lines(1, 10 * 5))
    until(lambda: log.exists() and log.stat().st_size >= tenth, 'ten bursts')
    # At a busy machine it may be slower. The first interval may be short.
    assert time.monotonic() - begin > 8 * 4 * guest.TICK


def test_a_boot_sector_is_small() -> None:
    with pytest.raises(ValueError, match='too long'):
        guest.boot_sector(b'x' * 400)
    assert len(guest.boot_sector(b'x' * 100, ports=4, interval=1)) == 512


def test_two_hosts_side_by_side(tmp_path: Path, use: Use) -> None:
    hosts = [use(LibvirtHost(tmp_path / name, name=name))
             for name in ('host1', 'host2')]
    for host in hosts:
        # The same name on each: neither sees the other's.
        start(host, guest.boot_sector(count=1),
              [guest.pty_serial(host.log_directory / 'console.log')])
    connections = [host.connect() for host in hosts]
    assert [c.getHostname() for c in connections] == ['host1', 'host2']
    assert [len(c.listAllDomains()) for c in connections] == [1, 1]
    for host in hosts:
        log = host.log_directory / 'console.log'
        until(lambda log=log: log.read_bytes() == guest.lines(1, 1), 'log')


def test_a_guest_migrates_between_two_hosts(tmp_path: Path,
                                            use: Use) -> None:
    source, destination = (use(LibvirtHost(tmp_path / name, name=name))
                           for name in ('host1', 'host2'))
    domain = start(source, guest.boot_sector(b'started once\r\n'),
                   [guest.pty_serial(tmp_path / 'console.log')])
    until(lambda: domain.info()[4], 'it runs')
    moved = domain.migrate(destination.connect(),
                           libvirt.VIR_MIGRATE_LIVE
                           | libvirt.VIR_MIGRATE_UNSAFE,
                           None, 'tcp:127.0.0.1', 0)
    assert moved.isActive()
    assert source.connect().listAllDomains() == []


def test_nothing_is_left(tmp_path: Path) -> None:
    before = set(psutil.pids())
    with LibvirtHost(tmp_path / 'host') as host:
        start(host, guest.boot_sector(), [guest.pty_serial()])
        assert {host.libvirtd_pid, host.virtlogd_pid,
                host.qemu_pid('guest1')} <= set(psutil.pids())
        state = host.state
    # What has ended may not have been waited for by its parent yet.
    until(lambda: set(psutil.pids()) <= before, 'no process is left')
    assert not state.exists()


def test_nothing_is_left_of_a_host_that_does_not_start(
        tmp_path: Path) -> None:
    before = set(psutil.pids())
    host = LibvirtHost(tmp_path / 'host', stdio_handler='nonsense')
    # fixtures reports it together with the fixture's details.
    with pytest.raises(MultipleExceptions):
        host.setUp()
    # What has ended may not have been waited for by its parent yet.
    until(lambda: set(psutil.pids()) <= before, 'no process is left')
