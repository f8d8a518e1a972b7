# SPDX-License-Identifier: Apache-2.0
"""Every command that the documentation shows is run.

A command line is one that begins with ``$`` or ``#`` in a ``console`` block.
One that nothing here knows how to run is a failure.
"""

import configparser
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fixtures
import pytest

from tests.lab import guest
from tests.lab.command import Console
from tests.lab.daemons import LibvirtHost
from tests.lab.wait import until
from virtlogd_driver.history import deleted

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / 'doc/source').rglob('*.rst')), ROOT / 'README.rst',
         ROOT / 'CONTRIBUTING.rst']
_BLOCK = re.compile(
    r'^( *)\.\. code-block:: console\n\n((?:\1 +.*\n|\n)+)', re.MULTILINE)

#: The guests of the pages.
GUESTS = ('instance-0000002a', 'instance-0000002b')

#: Where pip puts the filters, in an environment.
FILTERS_COPIED = (
    "cp $(python3 -c 'import sysconfig; "
    'print(sysconfig.get_path("data"))\')'
    '/etc/nova/rootwrap.d/virtlogd-driver.filters /etc/nova/rootwrap.d/')

#: Commands of whole test environments, and which test runs what they do.
ELSEWHERE = {
    'pip install virtlogd-driver': 'tests/install/test_load.py',
    FILTERS_COPIED: 'tests/install/test_load.py',
    'virtlogd-console history 6ba7b810 --retry':
        'tests/functional/test_history_copy.py',
    'python -m pytest tests/unit/guest --regenerate-output':
        'tests/unit/guest/test_plan.py',
    # Consumers that the stream goes into.
    **dict.fromkeys((
        'virtlogd-console stream --state FILE | '
        'systemd-cat -t virtlogd-console',
        'journalctl -t virtlogd-console -o cat',
        'virtlogd-console stream --state FILE | '
        'socat -u - UNIX-CONNECT:/run/virtlogd-console.socket'),
        'tests/functional/test_stream_recipes.py'),
    # Its last command needs a host with SELinux.
    **dict.fromkeys((
        'checkmodule -M -m -o virtlogd_nova.mod '
        'etc/selinux/virtlogd_nova.te',
        'semodule_package -o virtlogd_nova.pp -m virtlogd_nova.mod',
        'semodule -i virtlogd_nova.pp'), 'tests/unit/node/test_selinux.py'),
}


def commands() -> Iterator[tuple[str, str]]:
    """Page, and command."""
    for page in PAGES:
        for _, block in _BLOCK.findall(page.read_text()):
            for line in block.splitlines():
                prompt, _, command = line.strip().partition(' ')
                assert prompt in ('$', '#', ''), f'{page.name}: {line}'
                if command:
                    yield page.relative_to(ROOT).as_posix(), command


ALL = sorted({command: page for page, command in commands()}.items())


class Lab(fixtures.Fixture):
    """A host with the guests of the documentation, for its commands."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory

    def _setUp(self) -> None:
        self.host = self.useFixture(LibvirtHost(self.directory / 'host'))
        instances = self.directory / 'instances'
        instances.mkdir()
        self.console = self.useFixture(Console(
            self.host.uri, self.host.virtlogd_socket, instances))
        _keep_deleted(instances)
        for name in GUESTS:
            directory = self.host.log_directory / name
            directory.mkdir()
            (directory / 'console.boots').write_text(''.join(
                f'{{"time": {time}, "positions": {{"0": null, "1": null}}}}\n'
                for time in (1.0, 2.0)))
            logs = [directory / f'console{port}.log'
                    for port in ('', '.port1')]
            self.host.connect().defineXML(guest.domain_xml(
                self.host.directory, guest.boot_sector(count=100, ports=2),
                map(guest.tcp_serial, guest.free_ports(2), logs),
                name=name)).create()
            until(lambda logs=logs: all(  # type: ignore[misc]
                log.exists() and log.stat().st_size == 1500
                for log in logs), 'the guest has written')


def _keep_deleted(instances: Path) -> None:
    """Keep the log of a server that was deleted."""
    directory = instances / '6ba7b810-9dad-11d1-80b4-00c04fd430c8'
    directory.mkdir()
    (directory / 'console.log').write_bytes(guest.lines(1, 100))
    assert deleted.keep(
        deleted.Keeping(str(instances), 'host', 3600, 1 << 20),
        str(directory), deleted.About('instance-00000029', 'web-1'),
        time.time())


@pytest.fixture(scope='module')
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp('docs')) as fixture:
        yield fixture


def _console(lab: Lab, words: list[str], tmp_path: Path) -> None:
    command, *rest = words
    if '|' in rest:
        script = ' '.join(map(shlex.quote, lab.console.command))
        line = ' '.join(words)
        done = subprocess.run(
            ['bash', '-ec', f'set -o pipefail; {script} {line}'],
            check=False, capture_output=True, cwd=tmp_path, timeout=60)
        assert done.returncode == 0, done.stderr
        return
    if command == 'stream':
        _stream(lab, words, tmp_path)
        return
    if command in ('follow', 'attach'):
        terminal = lab.console.on_terminal(*words, NO_COLOR='1')
        terminal.read_until(b'line 00000100')
        terminal.type(b'\x03' if command == 'follow' else b'\x1d')
        assert terminal.wait() == (130 if command == 'follow' else 0)
        return
    done = lab.console.run(*words, cwd=tmp_path)
    assert done.returncode == 0 or command == 'check', done.stderr
    assert b'Traceback' not in done.stderr
    if command == 'show':
        assert done.stdout.replace(b'\r\n', b'\n').endswith(
            guest.lines(100, 100).replace(b'\r\n', b'\n'))
    if command == 'export':
        assert (tmp_path / words[-1]).exists()


def _stream(lab: Lab, words: list[str], tmp_path: Path) -> None:
    """Until it has begun: it has no end."""
    state = tmp_path / 'state'
    words[words.index('--state') + 1] = str(state)
    process = lab.console.start(*words, output=tmp_path / 'out',
                                messages=tmp_path / 'said')
    until(state.exists, 'a state file')
    process.terminate()
    assert process.wait(30) == 0
    assert (tmp_path / 'said').read_bytes() == b''


def _echo(lab: Lab, words: list[str], tmp_path: Path) -> None:
    """What is typed comes back from the guest."""
    typed, pipe, program, *rest = words
    assert (pipe, program) == ('|', 'virtlogd-console')
    # Of the other guest: it is in its log then.
    *rest, name = rest
    assert name == GUESTS[0]
    done = subprocess.run(
        [*lab.console.command, *rest, GUESTS[1]], check=False,
        capture_output=True,
        input=f'{typed}\n'.encode(), timeout=60)
    assert done.returncode == 0, done.stderr
    assert typed.encode() in done.stdout


def _status(lab: Lab, words: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c',
         'import sys; from virtlogd_driver.cmd import status; '
         'sys.exit(status.main())', *lab.console.command[3:5], *words],
        check=False, capture_output=True, cwd=ROOT)
    # The lab's host has no sudo to start helpers with.
    assert done.returncode in (0, 1, 2), done.stderr
    assert b'Check:' in done.stdout


def _sudo(lab: Lab, words: list[str], tmp_path: Path) -> None:
    """The lab has no other user."""
    option, user, program, *rest = words
    assert (option, user) == ('-u', 'nova')
    RUN[program](lab, rest, tmp_path)


def _reload(lab: Lab, words: list[str], tmp_path: Path) -> None:
    """As the unit file of virtlogd has it."""
    assert words == ['reload', 'virtlogd']
    lab.host.reload_virtlogd()

    def alive() -> bool:
        return b'dead' not in lab.console.run('list').stdout
    until(alive, 'all logs are alive')


def _tox(lab: Lab, words: list[str], tmp_path: Path) -> None:
    """The environment is there; its own commands are run by it."""
    tox = configparser.ConfigParser()
    tox.read(ROOT / 'tox.ini')
    option, name = words
    assert option == '-e'
    assert f'testenv:{name}' in tox


RUN: dict[str, Callable[[Lab, list[str], Path], None]] = {
    'virtlogd-console': _console,
    'virtlogd-driver-status': _status,
    'echo': _echo,
    'sudo': _sudo,
    'systemctl': _reload,
    'tox': _tox,
}


@pytest.mark.parametrize(('command', 'page'), ALL)
def test_command(lab: Lab, tmp_path: Path, command: str, page: str) -> None:
    if command in ELSEWHERE:
        assert (ROOT / ELSEWHERE[command]).exists()
        return
    program, *words = shlex.split(command)
    assert program in RUN, f'{page}: nobody runs {command!r}'
    RUN[program](lab, words, tmp_path)


def test_commands_were_found() -> None:
    assert len(ALL) > 20


def test_every_command_of_virtlogd_console_is_shown() -> None:
    shown = {command.split()[1] for command, _ in ALL
             if command.startswith('virtlogd-console ')}
    assert shown == {'list', 'show', 'follow', 'stream', 'export', 'attach',
                     'history', 'reattach', 'check', 'viewers'}
