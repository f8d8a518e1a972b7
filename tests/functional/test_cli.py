# SPDX-License-Identifier: Apache-2.0
"""virtlogd-console is run on real guests, in pipes and on terminals."""

import contextlib
import hashlib
import io
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import fixtures
import libvirt
import psutil
import pytest

from tests.functional.by_hand import define, log_of
from tests.lab import guest
from tests.lab.command import Console
from tests.lab.daemons import LibvirtHost
from tests.lab.terminal import Terminal
from tests.lab.wait import until

Use = Callable[[fixtures.Fixture], fixtures.Fixture]

CTRL_C, ESCAPE = b'\x03', b'\x1d'


# follow

@pytest.mark.long
def test_follow_is_exact_over_ten_megabytes_of_4_kib_files(
        tmp_path: Path, use: Use) -> None:
    """But for what it says was rotated away while it was held up."""
    host = use(LibvirtHost(tmp_path / 'host', max_size=4096, max_backups=32))
    console = use(Console(host.uri, host.virtlogd_socket))
    last = 700_000
    domain = define(host, guest.boot_sector(count=last),
                    [guest.pty_serial(log_of(host))])
    out, said = tmp_path / 'out', tmp_path / 'said'
    process = console.start('follow', 'guest1', output=out, messages=said)
    until(lambda: psutil.Process(process.pid).num_threads() > 1, 'it follows')
    domain.create()
    end = guest.lines(last, last)

    def complete() -> bool:
        with out.open('rb') as file:
            file.seek(max(0, out.stat().st_size - len(end)))
            return file.read() == end
    until(complete, 'the end', 300)
    shown, messages = out.read_bytes(), said.read_text()
    numbers = [int(n) for n in re.findall(rb'line (\d{8})\r\n', shown)]
    steps = [after - before for before, after in
             itertools.pairwise([0, *numbers])]
    gaps = sum(step > 1 for step in steps)
    assert min(steps) > 0, messages
    assert gaps <= len(re.findall('rotated away|missing', messages)), messages
    # Nothing else is there but a line that is cut off at each.
    assert len(shown) - len(end) * len(numbers) <= (len(end) - 1) * gaps


def test_follow_goes_on_over_stops_starts_and_a_new_virtlogd(
        libvirt_host: LibvirtHost, console: Console, tmp_path: Path) -> None:
    port = guest.free_port()
    domain = define(libvirt_host, guest.boot_sector(count=2),
                    [guest.tcp_serial(port, log_of(libvirt_host))])
    domain.create()
    out, said = tmp_path / 'out', tmp_path / 'said'
    process = console.start('follow', 'guest1', output=out, messages=said)
    until(lambda: out.read_bytes() == guest.lines(1, 2), 'the first start')
    domain.destroy()
    until(lambda: b'shut off' in said.read_bytes(), 'it is said')
    domain.create()
    until(lambda: out.read_bytes().count(guest.lines(1, 2)) == 2, 'the next')
    until(lambda: b'guest1 runs' in said.read_bytes(), 'it is said')
    libvirt_host.stop_virtlogd(signal.SIGKILL)
    libvirt_host.start_virtlogd()
    assert b'alive again' in console.output('reattach', 'guest1')
    with Terminal('127.0.0.1', port) as terminal:
        terminal.type(b'after virtlogd\r')
        until(lambda: b'after virtlogd\r\n' in out.read_bytes(), 'it goes on')
    libvirt_host.stop_libvirtd()
    libvirt_host.start_libvirtd()
    domain = libvirt_host.connect().lookupByName('guest1')
    with Terminal('127.0.0.1', port) as terminal:
        terminal.type(b'after libvirtd\r')
        until(lambda: b'after libvirtd\r\n' in out.read_bytes(), 'it goes on')
    # While libvirtd still finds its guest again, it ends it, and then says
    # that it does not run.
    with contextlib.suppress(libvirt.libvirtError):
        domain.destroy()
    domain.undefine()
    assert process.wait(30) == 0
    assert b'on this host no more' in said.read_bytes()


def test_follow_ends_when_the_guest_has_migrated(tmp_path: Path, use: Use
                                                 ) -> None:
    source, destination = (use(LibvirtHost(tmp_path / name, name=name))
                           for name in ('host1', 'host2'))
    console = use(Console(source.uri, source.virtlogd_socket))
    log = log_of(source)
    domain = source.connect().createXML(guest.domain_xml(
        source.directory, guest.boot_sector(interval=0.1),
        [guest.pty_serial(log)]))
    out, said = tmp_path / 'out', tmp_path / 'said'
    process = console.start('follow', '--lines', '99999', 'guest1',
                            output=out, messages=said)
    until(lambda: out.read_bytes().count(b'line') > 5, 'it follows')
    xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE)
    domain.migrate2(
        destination.connect(), xml.replace(str(log), str(log_of(destination))),
        libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_UNSAFE, None,
        'tcp:127.0.0.1', 0)
    assert process.wait(30) == 0
    assert b'it was migrated, or deleted' in said.read_bytes()
    assert out.read_bytes() == log.read_bytes()


def test_follow_several_on_a_terminal(libvirt_host: LibvirtHost,
                                      console: Console) -> None:
    domains = [define(libvirt_host, guest.boot_sector(count=3),
                      [guest.pty_serial(log_of(libvirt_host, name))], name)
               for name in ('one', 'another')]
    terminal = console.on_terminal('follow', '--timestamps', 'one', 'another')
    time.sleep(1)
    for domain in domains:
        domain.create()
    for label in (b'one     | ', b'another | '):
        for number in (1, 2, 3):
            terminal.read_until(
                label + b'\x1b[0mline %08d\r\n' % number)
    assert b'\x1b[36m' in terminal.seen
    # A line that pauses is a row before, with its time.
    assert len(re.findall(
        rb'\d{4}-\d\d-\S+ \x1b\[\d+m(?:one    |another) \| \x1b\[0m'
        rb'line \d{8}\r\n', terminal.seen)) == 6
    terminal.type(CTRL_C)
    assert terminal.wait() == 130


# show

HOSTILE = (b'\x1b]0;title\x07\x1b]52;c;ZXZpbA==\x07\x1b[2J\x1b[6n\x1bc'
           b'\x9b31m\xc2\x9b6n\x1b[31mred\x1b[0m caf\xc3\xa9 \xff\x00'
           b'\xe2\x80\xaetxt\r\n\tend\b!\r\n')
SHOWN = ('^[]0;title^G^[]52;c;ZXZpbA==^G^[[2J^[[6n^[c'
         '\\x9b31m\\x9b6n\x1b[31mred\x1b[0m café \\xff^@'
         '<U+202E>txt\r\n\tend\b!\r\n').encode()


@pytest.fixture
def hostile(libvirt_host: LibvirtHost) -> None:
    log = log_of(libvirt_host)
    log.write_bytes(HOSTILE)
    define(libvirt_host, guest.boot_sector(), [guest.pty_serial(log)])


@pytest.mark.usefixtures('hostile')
def test_a_pipe_gets_the_exact_bytes(console: Console) -> None:
    assert console.output('show', 'guest1') == HOSTILE


@pytest.mark.usefixtures('hostile')
def test_a_terminal_is_not_at_the_mercy_of_a_guest(console: Console) -> None:
    terminal = console.on_terminal('show', '--no-pager', 'guest1')
    assert terminal.wait() == 0
    assert terminal.seen.replace(b'\r\r\n', b'\r\n') == SHOWN + b'\x1b[0m'


@pytest.mark.usefixtures('hostile')
def test_raw_passes_all_on(console: Console) -> None:
    terminal = console.on_terminal('show', '--no-pager', '--raw', 'guest1')
    assert terminal.wait() == 0
    assert terminal.seen.replace(b'\r\r\n', b'\r\n') == HOSTILE


@pytest.mark.usefixtures('hostile')
def test_the_pager_is_the_operators(console: Console, tmp_path: Path
                                    ) -> None:
    paged = tmp_path / 'paged'
    terminal = console.on_terminal('show', 'guest1', PAGER=f'tee {paged}')
    assert terminal.wait() == 0
    assert paged.read_bytes() == SHOWN + b'\x1b[0m'
    # One that ends at once.
    assert console.on_terminal('show', 'guest1', PAGER='true').wait() == 0


def test_show_parts_of_a_log(libvirt_host: LibvirtHost,
                             console: Console) -> None:
    log = log_of(libvirt_host)
    log.with_name('console.log.1').write_bytes(guest.lines(1, 1000))
    log.with_name('console.log.0').write_bytes(guest.lines(1001, 2000))
    log.write_bytes(guest.lines(2001, 20000) + b'login: ')
    uuid = define(libvirt_host, guest.boot_sector(),
                  [guest.pty_serial(log)]).UUIDString()
    everything = guest.lines(1, 20000) + b'login: '
    assert console.output('show', 'guest1') == everything
    assert console.output('show', uuid, '--bytes', '10') == everything[-10:]
    assert console.output('show', uuid[:8], '--bytes', '1K') == (
        everything[-1024:])
    assert console.output('show', 'gue', '--lines', '3') == (
        guest.lines(19999, 20000) + b'login: ')
    assert console.output('show', 'guest1', '--lines', '19000') == (
        guest.lines(1002, 20000) + b'login: ')
    assert console.output('show', 'guest1', '--lines', '99999') == everything


def test_wrong_names(libvirt_host: LibvirtHost, console: Console) -> None:
    for name in ('web-1', 'web-2'):
        define(libvirt_host, guest.boot_sector(), [guest.pty_serial()], name)
    wrong = console.run('show', 'wbe-1')
    assert wrong.returncode == 1
    assert b'Did you mean web-1, web-2?' in wrong.stderr
    several = console.run('show', 'web')
    assert b'beginning of 2 guests: web-1, web-2' in several.stderr
    without = console.run('show', 'web-1')
    assert without.returncode == 1
    assert b'has no log' in without.stderr
    assert b'Traceback' not in without.stderr
    assert b'no serial port 4' in console.run(
        'show', '--port', '4', 'web-1').stderr


# export

def test_export_while_the_guest_writes(tmp_path: Path, use: Use) -> None:
    host = use(LibvirtHost(tmp_path / 'host', max_size=65536, max_backups=32))
    console = use(Console(host.uri, host.virtlogd_socket))
    log = log_of(host)
    log.with_name('console.g1.history').write_bytes(b'from before\r\n')
    log = log.with_name('console.g1.log')
    port1 = log.with_name('console.port1.log')
    # At a pace: its first line is not rotated away before it is exported.
    domain = define(host, guest.boot_sector(
        ports=2, interval=guest.TICK, burst=255),
        [guest.pty_serial(log), guest.pty_serial(port1)])
    domain.create()
    until(lambda: log.with_name('console.g1.log.2').exists(), 'it rotates')
    directory = tmp_path / 'exported'
    console.output('export', 'guest1', str(directory))
    manifest = json.loads((directory / 'manifest.json').read_text())
    assert manifest['guest'] == 'guest1'
    assert manifest['uuid'] == domain.UUIDString()
    files = {entry['name']: entry for entry in manifest['files']}
    assert list(files) == ['console.g1.history', 'console.g1.log',
                           'console.port1.log']
    for name, entry in files.items():
        data = (directory / name).read_bytes()
        assert len(data) == entry['size']
        assert hashlib.sha256(data).hexdigest() == entry['sha256']
    assert files['console.g1.log']['files'] >= 3
    assert files['console.g1.log']['generation'] == 1
    assert files['console.port1.log']['port'] == 1
    for name in ('console.g1.log', 'console.port1.log'):
        data = (directory / name).read_bytes()
        assert guest.lines(1, len(data) // 15 + 1).startswith(data)
    # Once more, in the other two forms.
    archive = tmp_path / 'exported.tar.gz'
    console.output('export', 'guest1', str(archive))
    assert archive.stat().st_mode & 0o777 == 0o600
    piped = io.BytesIO(console.output('export', 'guest1', '-'))
    for form in (archive.open('rb'), piped):
        with form, tarfile.open(fileobj=form) as tar:
            assert tar.getnames() == [
                f'console-guest1/{name}'
                for name in (*files, 'manifest.json')]
    again = console.run('export', 'guest1', str(directory))
    assert again.returncode == 1
    assert b'there already' in again.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        'exported', 'exported.tar.gz', 'host']


def test_export_from_a_disk_with_bad_sectors(
        libvirt_host: LibvirtHost, console: Console, tmp_path: Path) -> None:
    """All else is there, at its place, and what is not is said."""
    log = log_of(libvirt_host)
    log.parent.mkdir(parents=True, exist_ok=True)
    data = bytearray(random.Random(1).randbytes(3_000_001))  # noqa: S311
    log.write_bytes(data)
    define(libvirt_host, guest.boot_sector(), [guest.pty_serial(log)])
    directory = tmp_path / 'exported'
    done = subprocess.run(
        libvirt_host.command(
            sys.executable, '-m', 'tests.lab.mirror', log.parent,
            tmp_path / 'pid', *console.command, 'export', 'guest1',
            directory),
        env={**os.environ, 'BAD_SECTORS': 'console.log:1500000:5000'},
        check=True, capture_output=True, text=True, timeout=60)
    assert '8192 bytes of console.log are NULs' in done.stderr
    assert 'Input/output error' in done.stderr
    [entry] = json.loads((directory / 'manifest.json').read_text())['files']
    begin, size = 1500000 // 4096 * 4096, 2 * 4096
    assert entry['unread'] == [[begin, size]]
    assert not entry['whole']
    data[begin:begin + size] = bytes(size)
    assert (directory / 'console.log').read_bytes() == data


# attach

def test_type_into_a_guest_and_leave(libvirt_host: LibvirtHost,
                                     console: Console) -> None:
    define(libvirt_host, guest.boot_sector(b'welcome\r\n', count=1), [
        guest.tcp_serial(guest.free_port(), log_of(libvirt_host))]).create()
    until(lambda: guest.lines(1, 1) in log_of(libvirt_host).read_bytes(),
          'it has started')
    terminal = console.on_terminal('attach', 'guest1')
    terminal.read_until(b'^] leaves')
    terminal.read_until(b'line 00000001')
    assert b'welcome' in terminal.seen
    until(lambda: terminal.attributes != terminal.before, 'raw mode')
    # Also what a terminal would take for itself.
    terminal.type(b'typed \x03\r')
    terminal.read_until(b'typed ^C\r\n')
    terminal.type(ESCAPE)
    assert terminal.wait() == 0
    assert b'left guest1' in terminal.seen
    assert terminal.attributes == terminal.before
    until(lambda: b'typed \x03\r\n' in log_of(libvirt_host).read_bytes(),
          'echo in the log')


def test_type_into_a_pseudo_terminal_of_a_guest(
        libvirt_host: LibvirtHost, console: Console) -> None:
    define(libvirt_host, guest.boot_sector(count=1),
           [guest.pty_serial(log_of(libvirt_host))]).create()
    terminal = console.on_terminal('attach', 'guest1')
    terminal.read_until(b'leaves')
    until(lambda: terminal.attributes != terminal.before, 'raw mode')
    terminal.type(b'typed\r')
    terminal.read_until(b'typed\r\n')
    # libvirt gives it to one at a time.
    second = console.on_terminal('attach', 'guest1')
    assert second.wait() == 1
    assert second.attributes == second.before
    terminal.type(ESCAPE)
    assert terminal.wait() == 0
    assert terminal.attributes == terminal.before


def test_attach_survives_a_restart_of_the_guest(
        libvirt_host: LibvirtHost, console: Console) -> None:
    domain = define(libvirt_host, guest.boot_sector(count=1), [
        guest.tcp_serial(guest.free_port(), log_of(libvirt_host))])
    domain.create()
    terminal = console.on_terminal('attach', 'guest1')
    terminal.read_until(b'leaves')
    until(lambda: terminal.attributes != terminal.before, 'raw mode')
    domain.destroy()
    terminal.read_until(b'waiting for the guest')
    domain.create()
    terminal.read_until(b'[connected]')
    terminal.type(b'again\r')
    terminal.read_until(b'again\r\n')
    domain.destroy()
    terminal.seen = b''
    terminal.read_until(b'waiting for the guest')
    terminal.type(ESCAPE)
    assert terminal.wait() == 0
    assert terminal.attributes == terminal.before


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_restored_by_a_signal(
        libvirt_host: LibvirtHost, console: Console, number: int) -> None:
    define(libvirt_host, guest.boot_sector(), [
        guest.tcp_serial(guest.free_port(), log_of(libvirt_host))]).create()
    terminal = console.on_terminal('attach', 'guest1')
    until(lambda: terminal.attributes != terminal.before, 'raw mode')
    terminal.process.send_signal(number)
    assert terminal.wait() == 128 + number
    assert terminal.attributes == terminal.before


def test_somebody_else_is_at_the_console(
        libvirt_host: LibvirtHost, console: Console, use: Use) -> None:
    port = guest.free_port()
    domain = define(libvirt_host, guest.boot_sector(count=1),
                    [guest.tcp_serial(port, log_of(libvirt_host))])
    stopped = console.on_terminal('attach', 'guest1')
    assert stopped.wait() == 1
    assert b'start it first' in stopped.seen
    domain.create()
    other = use(Terminal('127.0.0.1', port))
    terminal = console.on_terminal('attach', 'guest1')
    terminal.read_until(b'is at this console')
    terminal.read_until(b'leaves')
    other.socket.close()
    terminal.type(b'mine\r')
    terminal.read_until(b'mine\r\n')
    terminal.type(ESCAPE)
    assert terminal.wait() == 0


# list, reattach, check

def test_a_log_dies_and_is_brought_back(
        libvirt_host: LibvirtHost, console: Console) -> None:
    port = guest.free_port()
    log = log_of(libvirt_host)
    domain = define(libvirt_host, guest.boot_sector(count=2),
                    [guest.tcp_serial(port, log), guest.pty_serial()])
    domain.create()
    until(lambda: log.exists() and log.stat().st_size == 30, 'two lines')
    log.with_name('console.log.0').write_bytes(b'older\n')
    first, second = json.loads(console.output('list', '--json'))
    written = first.pop('last_write')
    assert first == {
        'name': 'guest1', 'uuid': domain.UUIDString(), 'state': 'running',
        'port': 0, 'device': 'tcp', 'address': f'127.0.0.1:{port}',
        'log': 'alive', 'file': str(log), 'size': 36, 'rotated': 1,
        'viewers': None, 'unclear': None}
    assert written.startswith(time.strftime('%Y-%m-', time.gmtime()))
    assert second['log'] == 'none'
    assert second['device'] == 'pty'
    assert second['address'].startswith('/dev/pts/')
    table = console.output('list').decode().splitlines()
    assert table[0].split()[:7] == [
        'NAME', 'STATE', 'PORT', 'DEVICE', 'ADDRESS', 'LOG', 'SIZE']
    assert table[1].split()[:8] == [
        'guest1', 'running', '0', 'tcp', f'127.0.0.1:{port}', 'alive', '36',
        '1']
    assert b'nothing to do' in console.output('reattach', 'guest1')

    libvirt_host.stop_virtlogd(signal.SIGKILL)
    down = console.run('list')
    assert b'dead' in down.stdout
    assert b'virtlogd is down' in down.stderr
    libvirt_host.start_virtlogd()
    assert json.loads(console.output('list', '--json'))[0]['log'] == 'dead'
    on_terminal = console.on_terminal('list', columns=200)
    assert on_terminal.wait() == 0
    assert b'\x1b[31mdead\x1b[0m' in on_terminal.seen
    failed = console.run('check')
    assert failed.returncode == 2
    assert b'FAILURE' in failed.stdout
    assert b'alive again' in console.output('reattach', 'guest1')
    assert json.loads(console.output('list', '--json'))[0]['log'] == 'alive'
    assert console.run('check').returncode < 2
    checked = json.loads(console.run('check', '--json').stdout)
    assert 'Driver in nova' not in [entry['check'] for entry in checked]
    assert {'check': 'virtlogd', 'result': 'ok', 'details': ''} in checked


def test_a_hung_virtlogd_hangs_nobody(libvirt_host: LibvirtHost,
                                      console: Console) -> None:
    with contextlib.ExitStack() as stack:
        pid = libvirt_host.virtlogd_pid
        stack.callback(psutil.Process(pid).resume)
        psutil.Process(pid).suspend()
        hung = console.run('list', seconds=30)
    assert hung.returncode == 1
    assert b'libvirt is not asked' in hung.stderr


def test_a_hung_libvirt_can_be_left(libvirt_host: LibvirtHost,
                                    console: Console) -> None:
    with contextlib.ExitStack() as stack:
        pid = libvirt_host.libvirtd_pid
        stack.callback(psutil.Process(pid).resume)
        psutil.Process(pid).suspend()
        terminal = console.on_terminal('show', 'guest1')
        process = psutil.Process(terminal.process.pid)
        until(lambda: process.net_connections('unix'), 'it asks libvirt')
        terminal.type(CTRL_C)
        assert terminal.wait(5) == -signal.SIGINT
