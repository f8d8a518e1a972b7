# SPDX-License-Identifier: Apache-2.0
"""list works, whatever one guest, the locale or the reader of it are like."""

import collections
import errno
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import libvirt
import pytest

from tests.lab.command import Console
from tests.unit import fake_libvirt
from virtlogd_driver import exception
from virtlogd_driver.cmd import history, host, listing
from virtlogd_driver.cmd.disks import WaitedOnce
from virtlogd_driver.cmd.host import SerialPort
from virtlogd_driver.console_log import files
from virtlogd_driver.node.hypervisor import Guest
from virtlogd_driver.virtlogd import bounded, health
from virtlogd_driver.virtlogd.disk import Disks

#: A disk that is well may be slow.
DISKS = Disks(patience=60)


class Host:
    """A host with these guests, and no virtlogd."""

    def __init__(self, *guests: tuple[str, str]) -> None:
        self._guests = [Guest(f'uuid of {name}', name, True, 'running', xml)
                        for name, xml in guests]
        self.asked = 0
        self.relayed = ''
        self.connected: list[list[object]] = []

    def is_relayed(self, address: str) -> bool:
        return address == self.relayed

    def viewers(self, ports: Sequence[SerialPort]) -> list[list[object]]:
        assert len(ports) == len(self.connected)
        return self.connected

    def guests(self) -> list[Guest]:
        return self._guests

    def log_states(self, ports: Sequence[SerialPort],
                   _disks: Disks) -> list[str]:
        self.asked += 1
        return ['alive' for _ in ports]


def rows(*guests: tuple[str, str],
         disks: Disks = DISKS) -> list[listing.Row]:
    fake: Any = Host(*guests)
    found = listing.rows(fake, disks)
    assert fake.asked == 1
    return found


def xml(*serials: str) -> str:
    return fake_libvirt.domain_xml(''.join(serials))


def test_a_guest_that_is_not_understood_is_a_row_with_the_reason() -> None:
    bad, none, strange = rows(
        ('bad', '<domain'), ('none', xml()), ('strange', xml(
            fake_libvirt.serial().replace("'10000'", "'no-such-service'"))))
    assert (bad.port, bad.log) == (None, 'unknown')
    assert 'not well-formed' in bad.unclear
    assert (none.port, none.log, none.unclear) == (None, 'none', '')
    assert strange.port is not None
    assert strange.log == 'alive'
    assert 'no-such-service' in strange.unclear


def test_who_is_at_the_consoles_that_are_relayed() -> None:
    fake: Any = Host(
        ('one', xml(fake_libvirt.serial())),
        ('other', xml(fake_libvirt.serial().replace(
            '127.0.0.1', '127.0.101.1'))))
    assert 'VIEWERS' not in listing._lines(listing.rows(fake, DISKS))[0]
    fake.relayed, fake.connected = '127.0.101.1', [[], [1, 2]]
    found = listing.rows(fake, DISKS)
    assert [row.viewers for row in found] == [None, 2]
    head, one, other = [line.split() for line in listing._lines(found)]
    column = head.index('VIEWERS')
    assert (one[column], other[column]) == ('-', '2')


@pytest.mark.parametrize('error', [
    OSError(errno.ESTALE, 'Stale file handle'),
    OSError(errno.EIO, 'Input/output error'),
    NotADirectoryError(errno.ENOTDIR, 'Not a directory'),
    exception.LogRefused('it may not be looked at'),
    UnicodeEncodeError('ascii', 'ü', 0, 1, 'not in range'),
])
def test_files_that_cannot_be_looked_at_are_one_guests_matter(
        monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def usage(path: str) -> files.Usage | None:
        if 'bad' in path:
            raise error
        return files.Usage(1, 0, 5, None)

    monkeypatch.setattr(files, 'usage', usage)
    found = rows(
        ('bad', xml(fake_libvirt.serial(log='/bad/console.log'))),
        ('good', xml(fake_libvirt.serial(log='/good/console.log'))))
    assert [row.usage is None for row in found] == [True, False]
    assert str(error.args[-1]) in found[0].unclear
    assert found[1].unclear == ''


def test_a_file_may_have_a_time_that_is_no_date(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        files, 'usage', lambda _: files.Usage(1, 0, 5, float(1 << 60)))
    found = rows(('one', xml(fake_libvirt.serial(log='/x/console.log'))))
    assert listing._json(found[0])['last_write'] is None
    head, one = [line.split() for line in listing._lines(found)]
    assert one[head.index('WRITTEN')] == '-'


def test_a_file_system_that_stalls_costs_one_wait(
        monkeypatch: pytest.MonkeyPatch) -> None:
    """Guests of other file systems are shown."""
    asked = []

    def call(mount: str, _seconds: float, function: Any, path: str) -> Any:
        asked.append(path)
        if mount == '/stalls':
            raise bounded.NoAnswer
        return function(path)

    monkeypatch.setattr(files, 'usage', lambda _: files.Usage(1, 0, 5, None))
    disks = WaitedOnce(mounted=lambda: ['/', '/stalls'])
    monkeypatch.setattr(disks._calls, 'call', call)
    logs = [f'/{mount}/{number}/console.log'
            for number in range(3) for mount in ('stalls', 'well')]
    found = rows(*((log, xml(fake_libvirt.serial(log=log))) for log in logs),
                 disks=disks)
    assert [row.name for row in found] == logs
    assert [row.usage is None for row in found] == [True, False] * 3
    for row in found[::2]:
        assert 'mounted at /stalls, has not answered for 5 s' in row.unclear
    assert f'{logs[4]} is not looked at.' in found[4].unclear
    assert not any(row.unclear for row in found[1::2])
    assert asked == [logs[0], *logs[1::2]]
    # Nor is it asked what waits for other hosts.
    assert history.late('/stalls/instances', disks) == []
    assert len(asked) == 4


def test_leaving_does_not_wait_for_a_file_system_that_stalls(
        console: Console) -> None:
    script = ('import functools, threading\n'
              'from virtlogd_driver.cmd import console, listing\n'
              'from virtlogd_driver.console_log import files\n'
              'files.usage = lambda path: threading.Event().wait()\n'
              'listing.WaitedOnce = functools.partial(\n'
              '    listing.WaitedOnce, patience=0.1)\n'
              f'console.main({console.command[3:]!r} + ["list"])\n')
    done = subprocess.run([sys.executable, '-c', script], check=True,
                          capture_output=True, text=True, timeout=60)
    assert len(done.stdout.splitlines()) == 4
    assert done.stderr.count('has not answered') == 3


def test_what_is_asked_does_not_grow_but_with_the_guests(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """libvirt: one call for all, three a guest. virtlogd: one for all."""
    domains = []
    for number in range(200):
        log = tmp_path / f'{number}' / 'console.log'
        log.parent.mkdir()
        log.write_bytes(b'x' * number)
        log.with_name('console.log.0').write_bytes(b'x')
        domains.append(fake_libvirt.domain_xml(
            fake_libvirt.serial(service=10000 + number, log=str(log)),
            name=f'guest{number:03}'))
    node = tmp_path / 'node.xml'
    node.write_text(fake_libvirt.NODE.format(domains=''.join(domains)))
    calls: collections.Counter[str] = collections.Counter()

    def counted(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def call(*arguments: Any) -> Any:
            calls[name] += 1
            return original(*arguments)

        monkeypatch.setattr(owner, name, call)

    # What goes to the daemon: names and UUIDs are known.
    remote = ('isActive', 'state', 'XMLDesc', 'info', 'isPersistent',
              'metadata', 'hasManagedSaveImage')
    for name in remote:
        counted(libvirt.virDomain, name)
    counted(libvirt.virConnect, 'listAllDomains')
    asked: list[Sequence[object]] = []

    def ask(_socket: str, logs: Sequence[object], _timeout: float) -> Any:
        asked.append(logs)
        return 'up', '', ['open'] * len(logs)

    monkeypatch.setattr(health, 'ask', ask)
    found = listing.rows(host.Host(f'test://{node}', 'none', 1.0), DISKS)
    assert [row.usage.size for row in found if row.usage] == list(
        range(1, 201))
    assert calls.pop('listAllDomains') == 1
    assert calls.total() <= 3 * 200
    assert len(asked) == 1
    assert len(asked[0]) == 200


def test_a_command_does_not_import_nova(console: Console) -> None:
    """That alone takes seconds."""
    script = (f'import sys\nfrom virtlogd_driver.cmd import console\n'
              f'console.main({console.command[3:]!r} + ["list"])\n'
              'print(*{name.split(".")[0] for name in sys.modules})\n')
    done = subprocess.run([sys.executable, '-c', script], check=True,
                          capture_output=True, text=True)
    imported = set(done.stdout.splitlines()[-1].split())
    assert 'libvirt' in imported
    assert not imported & {'nova', 'sqlalchemy', 'oslo_messaging', 'oslo_db',
                           'neutronclient', 'glanceclient', 'hypothesis'}


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    node = tmp_path / 'node.xml'
    (tmp_path / 'file').write_text('where a directory should be')
    node.write_text(fake_libvirt.NODE.format(domains=''.join(
        fake_libvirt.domain_xml(
            fake_libvirt.serial(log=f'{tmp_path}/file/{number}.log'),
            name=name)
        for number, name in enumerate(('grün', 'C1-\x9b31m', '中')))))
    with Console(f'test://{node}') as made:
        yield made


@pytest.mark.parametrize('environment', [
    {'LC_ALL': 'C'}, {'PYTHONIOENCODING': 'latin-1'},
    {'LC_ALL': 'POSIX', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'}])
@pytest.mark.parametrize('form', ['--names', None])
def test_names_in_any_locale(console: Console, environment: dict[str, str],
                             form: str | None,
                             monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = console.run('list', *([form] if form else []))
    assert done.returncode == 0, done.stderr
    assert b'Traceback' not in done.stderr
    assert done.stdout.count(b'\n') >= 4
    if form is None:
        assert b'\x9b' not in done.stdout


def test_what_is_typed_need_not_be_text(console: Console) -> None:
    for word in ('\udcff', '\x1b[8m'):
        done = console.run('show', word)
        assert done.returncode == 1
        assert b'There is no guest' in done.stderr
        assert b'\x1b' not in done.stderr


@pytest.mark.parametrize(('redirection', 'status'), [
    ('>&-', 0), ('2>&-', 0), ('>&- 2>&- <&-', 0),
    ('> /dev/full', 1)])
def test_streams_that_are_closed_or_full(
        console: Console, redirection: str, status: int) -> None:
    command = shlex.join([*console.command, 'list'])
    done = subprocess.run(['bash', '-c', f'{command} {redirection}'],
                          check=False, capture_output=True)
    assert b'Traceback' not in done.stderr + done.stdout
    assert b'Exception' not in done.stderr
    assert done.returncode == status
    if status:
        assert b'No space left' in done.stderr
        assert done.stderr.count(b'virtlogd-console: ') == 1


def test_a_reader_that_has_left(console: Console) -> None:
    command = shlex.join([*console.command, 'list'])
    done = subprocess.run(
        ['bash', '-c',
         f'{command} | true; exit ${{PIPESTATUS[0]}}'],
        check=False, capture_output=True)
    assert b'Traceback' not in done.stderr
    assert done.returncode in (0, 141)
