# SPDX-License-Identifier: Apache-2.0
"""virtlogd-console works on libvirt's own test driver."""

import contextlib
import json
import os
import random
import shlex
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.command import Console
from tests.unit import fake_libvirt
from tests.unit.cmd import rotated
from tests.unit.cmd.test_completion import COMMANDS
from virtlogd_driver.console_log import log
from virtlogd_driver.console_log.directory import open_directory
from virtlogd_driver.history import boot

Make = Callable[..., Console]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """A command that sees the domains given."""
    made: list[Console] = []

    def node(*domains: str, virtlogd_socket: Path | None = None) -> Console:
        path = tmp_path / 'node.xml'
        path.write_text(
            fake_libvirt.NODE.format(domains='\n'.join(domains)))
        console = Console(f'test://{path}', virtlogd_socket)
        console.setUp()
        made.append(console)
        return console

    yield node
    for console in made:
        console.cleanUp()


@pytest.mark.parametrize('command', ['', *COMMANDS])
def test_help_is_readable(make: Make, command: str) -> None:
    terminal = make().on_terminal(*command.split(), '--help', columns=80)
    assert terminal.wait() == 0
    lines = terminal.seen.decode().splitlines()
    assert lines[0].startswith(f'usage: virtlogd-console {command}'.rstrip())
    assert max(map(len, lines)) <= 80
    if not command:
        assert [line.split()[0] for line in lines
                if line.startswith('    ') and line[4] != ' '] == [
                    *COMMANDS]


def test_usage(make: Make) -> None:
    wrong = make().run('show', '--bytes', '-1', 'x')
    assert wrong.returncode == 2
    assert b'usage: virtlogd-console show' in wrong.stderr
    assert make().run('attach', '--escape', '^^^', 'x').returncode == 2
    assert make().run('show', '--all', '--lines', '3', 'x').returncode == 2


def test_list_of_odd_guests(make: Make) -> None:
    console = make(
        fake_libvirt.domain_xml(name='none'),
        fake_libvirt.domain_xml(
            fake_libvirt.serial(log=None) + fake_libvirt.serial(
                1, 10001, '::', '/nowhere/x.log'), name='two'))
    none, first, second = json.loads(console.output('list', '--json'))
    assert (none['port'], none['log'], none['size']) == (None, 'none', None)
    assert (first['port'], first['log'], first['file']) == (0, 'none', None)
    assert second['address'] == '[::]:10001'
    assert second['size'] == 0
    assert second['last_write'] is None
    lines = console.output('list').decode().splitlines()
    assert lines[1].split()[:5] == ['none', 'running', '-', '-', '-']
    assert console.output('list', '--names').split() == [
        b'none', none['uuid'].encode(), b'two', first['uuid'].encode()]


def test_log_of_a_guest_that_just_starts_is_unknown(
        make: Make, tmp_path: Path) -> None:
    """libvirt has no status file of it yet, or none any more."""
    (tmp_path / 'qemu').mkdir()
    console = make(
        fake_libvirt.domain_xml(fake_libvirt.serial(log='/nowhere/x.log')),
        virtlogd_socket=tmp_path / 'none')
    (found,) = json.loads(console.output('list', '--json'))
    assert found['log'] == 'unknown'


def test_a_narrow_terminal_gets_fewer_columns(make: Make) -> None:
    console = make(fake_libvirt.domain_xml(fake_libvirt.serial()))
    for columns, last in ((250, b'FILE'), (120, b'UUID'), (90, b'WRITTEN'),
                          (40, b'WRITTEN')):
        terminal = console.on_terminal('list', columns=columns, NO_COLOR='1')
        assert terminal.wait() == 0
        assert terminal.seen.splitlines()[0].endswith(last)
        assert b'\x1b' not in terminal.seen


@pytest.mark.parametrize(('arguments', 'says'), [
    (('show', 'guest'), 'no console log'),
    (('show', 'guest', '--lines', '3'), 'no console log'),
    (('export', 'guest', 'target'), 'no console log'),
    (('attach', 'guest'), 'cannot be reached'),
    (('follow', 'guest', 'nobody'), 'no guest'),
])
def test_errors_are_one_line(make: Make, tmp_path: Path,
                             arguments: tuple[str, ...], says: str) -> None:
    console = make(fake_libvirt.domain_xml(
        fake_libvirt.serial(log=f'{tmp_path}/console.log')))
    done = console.run(*arguments)
    assert done.returncode == 1
    assert done.stdout == b''
    assert says in done.stderr.decode()
    assert done.stderr.startswith(b'virtlogd-console: ')
    assert done.stderr.count(b'\n') == 1


def test_a_bad_option_is_one_line(make: Make, tmp_path: Path) -> None:
    bad = tmp_path / 'bad.conf'
    bad.write_text('[virtlogd]\nhealth_timeout = soon\n')
    done = make().run('--config-file', str(bad), 'list')
    assert done.returncode == 1
    assert b'health_timeout' in done.stderr
    assert done.stderr.count(b'\n') == 1


def test_a_closed_pipe_is_no_error(make: Make, tmp_path: Path) -> None:
    log_path = tmp_path / 'console.log'
    log_path.write_bytes(b'line\n' * 1_000_000)
    console = make(fake_libvirt.domain_xml(
        fake_libvirt.serial(log=str(log_path))))
    command = shlex.join([*console.command, 'show', 'guest'])
    done = subprocess.run(
        ['bash', '-c', f'{command} | head -n 1; exit ${{PIPESTATUS[0]}}'],
        check=False, capture_output=True)
    assert done.stdout == b'line\n'
    assert done.returncode == 141
    assert done.stderr == b''


@pytest.mark.parametrize(('output', 'status', 'says'), [
    ('| head -n 1; exit ${PIPESTATUS[0]}', 141, b''),
    ('> /dev/full', 1, b'No space left on device')])
def test_what_attach_cannot_write_is_not_said_of_the_guest(
        make: Make, output: str, status: int, says: bytes) -> None:
    with socket.create_server(('127.0.0.1', 0)) as qemu:
        console = make(fake_libvirt.domain_xml(fake_libvirt.serial(
            0, qemu.getsockname()[1], log=None)))
        command = shlex.join([*console.command, 'attach', '--watch', 'guest'])
        attached = subprocess.Popen(
            ['bash', '-c', f'{command} {output}'], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        guest, _ = qemu.accept()
        with guest, contextlib.suppress(OSError):
            for _ in range(1000):
                guest.sendall(b'line\n' * 1000)
        _, errors = attached.communicate(b'', timeout=60)
    assert attached.returncode == status
    assert says in errors
    assert b'cannot be reached' not in errors


def test_why_an_export_cannot_be_written(make: Make, tmp_path: Path) -> None:
    log_path = tmp_path / 'console.log'
    log_path.write_bytes(b'line\n')
    console = make(fake_libvirt.domain_xml(
        fake_libvirt.serial(log=str(log_path))))
    for target, reason in (
            (str(tmp_path), 'it is there already. Give the name of what is '
                            'not there yet.'),
            (f'{tmp_path}/none/out', 'No such file or directory. Give a '
             'place that can be written, with room for it.')):
        done = console.run('export', 'guest', target)
        assert done.returncode == 1
        assert done.stderr.decode().endswith(
            f'{target} cannot be written: {reason}\n')


def test_an_export_says_what_is_not_in_it(make: Make, tmp_path: Path) -> None:
    (tmp_path / 'console.g1.log').write_bytes(b'line\n')
    (tmp_path / 'console.g1.history').mkdir()
    console = make(fake_libvirt.domain_xml(
        fake_libvirt.serial(log=f'{tmp_path}/console.g1.log')))
    done = console.run('export', 'guest', str(tmp_path / 'out'))
    assert done.returncode == 0
    assert done.stderr.decode().splitlines()[1] == (
        f'console.g1.history is left out: {tmp_path}/console.g1.history is '
        f'not a regular file, so it is not read as a console log. Remove it, '
        f'or correct the <log> of the domain.')


def test_progress_of_long_work(make: Make, tmp_path: Path) -> None:
    log_path = tmp_path / 'console.log'
    log_path.write_bytes(random.Random(1).randbytes(60_000_000))  # noqa: S311
    console = make(fake_libvirt.domain_xml(
        fake_libvirt.serial(log=str(log_path))))
    terminal = console.on_terminal(
        'export', 'guest', str(tmp_path / 'out.tar.gz'))
    assert terminal.wait(120) == 0
    assert b'% of 57M' in terminal.seen
    assert terminal.seen.endswith(
        b'\r\x1b[K57M in 1 file and manifest.json: '
        + str(tmp_path).encode() + b'/out.tar.gz\r\n')


def test_no_libvirt() -> None:
    with Console('test:///nowhere/at/all.xml') as console:
        done = console.run('list')
    assert done.returncode == 1
    assert b'libvirt could not be asked' in done.stderr
    assert b'Traceback' not in done.stderr


def test_since_the_last_boot(make: Make, tmp_path: Path) -> None:
    console = make(fake_libvirt.domain_xml(
        fake_libvirt.serial(log=f'{tmp_path}/console.log')))
    first = b'first boot\n'
    rotated.make(tmp_path / 'console.log', first + b'second ', b'boot\n')
    with open_directory(str(tmp_path)) as directory:
        end = log.position_at(directory, 'console.log.0', len(first))
    boot.write(str(tmp_path), [boot.Boot(1.0, {0: None}),
                               boot.Boot(2.0, {0: end})])
    shown = console.run('show', 'guest', '--since-boot')
    assert shown.stdout == b'second boot\n'
    assert shown.stderr == b''
    # Rotated away.
    (tmp_path / 'console.log.0').unlink()
    shown = console.run('show', 'guest', '--since-boot')
    assert shown.stdout == b'boot\n'
    assert b'output may be missing' in shown.stderr
    (tmp_path / boot.FILE).unlink()
    shown = console.run('show', 'guest', '--since-boot')
    assert shown.returncode == 1
    assert b'No start of this guest is noted' in shown.stderr



def test_check_without_nova_starts_no_helper(
        make: Make, tmp_path: Path) -> None:
    """Root asks itself; what only nova-compute has is not shown."""
    if os.geteuid() != 0:
        pytest.skip('anybody else asks virtlogd through a helper')
    started = tmp_path / 'started'
    for name in ('sudo', 'privsep-helper'):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho {name} >> {started}\nexit 1\n')
        program.chmod(0o755)
    console = make()
    ran = subprocess.run(
        [*console.command, 'check'], check=False, capture_output=True,
        text=True, env={**os.environ, 'PATH':
                        f'{tmp_path}:{os.environ["PATH"]}'})
    assert 'Versions' in ran.stdout
    assert 'Privileged helpers' not in ran.stdout
    assert ran.stderr == ''
    assert not started.exists()


def test_since_the_last_boot_the_last_lines(
        make: Make, tmp_path: Path) -> None:
    console = make(fake_libvirt.domain_xml(
        fake_libvirt.serial(log=f'{tmp_path}/console.log')))
    live = tmp_path / 'console.log'
    live.write_bytes(b'first boot\n')
    with open_directory(str(tmp_path)) as directory:
        end = log.read_tail(directory, 'console.log', 0).position
    boot.write(str(tmp_path), [boot.Boot(1.0, {0: end})])
    with live.open('ab') as file:
        file.write(b'one\ntwo\nthree\n')
    for part, shown in ((('--lines', '2'), b'two\nthree\n'),
                        (('--lines', '9'), b'one\ntwo\nthree\n'),
                        (('--bytes', '3'), b'ee\n'),
                        (('--bytes', '99'), b'one\ntwo\nthree\n')):
        assert console.output('show', 'guest', '--since-boot', *part) == shown


def test_export_takes_logs_of_any_name(make: Make, tmp_path: Path) -> None:
    """Also of a port that the guest has no more."""
    names = ('console.log', 'b/console.log', 'c/manifest.json',
             'd/ä -x%.log')
    serials = ''
    for number, name in enumerate(names):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b'%d' % number)
        serials += fake_libvirt.serial(number, 10000 + number, log=str(path))
    rotated.make(tmp_path / 'console.port7.g2.log', b'it was ', b'left')
    console = make(fake_libvirt.domain_xml(serials))
    out = tmp_path / 'out'
    console.output('export', 'guest', str(out))
    manifest = json.loads((out / 'manifest.json').read_text())
    assert [(out / entry['name']).read_bytes()
            for entry in manifest['files']] == [
                b'0', b'1', b'2', b'3', b'it was left']
    assert [entry['port'] for entry in manifest['files']] == [0, 1, 2, 3, 7]
