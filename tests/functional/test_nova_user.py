# SPDX-License-Identifier: Apache-2.0
"""nova's user gets the privileged helpers by sudo and rootwrap."""

import contextlib
import json
import os
import pwd
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import fixtures
import pytest
from oslo_privsep import capabilities
from oslo_rootwrap import cmd as rootwrap

from tests.lab import guest
from tests.lab.compute_process import PROGRAM
from tests.lab.daemons import LibvirtHost
from tests.lab.nova_user import NovaUser
from tests.lab.wait import until
from virtlogd_driver.node import metrics
from virtlogd_driver.virtlogd import health, periodic

Use = Callable[[fixtures.Fixture], fixtures.Fixture]

#: What the guest writes: more than one file of its log takes.
LINES = 600


class Node(fixtures.Fixture):
    """A compute node on which nova's user is no more than that."""

    def __init__(self, host: LibvirtHost, options: str = '') -> None:
        """
        :param options: more lines of nova.conf
        """
        super().__init__()
        self.host = host
        self._options = options
        self.instances = host.directory / 'instances'
        self.log = self.instances / 'guest' / 'console.log'

    def _setUp(self) -> None:
        self.log.parent.mkdir(parents=True)
        metrics_file = self.host.directory / 'virtlogd.prom'
        self.user = self.useFixture(NovaUser(textwrap.dedent(f'''\
            [DEFAULT]
            compute_driver = virtlogd_driver.VirtlogdDriver
            instances_path = {self.instances}
            [libvirt]
            connection_uri = {self.host.uri}
            [virtlogd]
            virtlogd_socket = {self.host.virtlogd_socket}
            virtlogd_conf = {self.host.virtlogd_conf}
            qemu_conf = {self.host.qemu_conf}
            metrics_file = {metrics_file}
            ''') + self._options, [self.host.directory]))
        os.chown(self.log.parent, self.user.uid, -1)
        for name in ('passwd', 'group'):
            # libvirtd looks up who asks it.
            subprocess.run(self.host.command(
                'mount', '--bind', self.user.etc / name, f'/etc/{name}'),
                check=True)
        # As Debian, Ubuntu and kolla have it, and as RHEL has the directory.
        for file in (self.host.qemu_conf, self.host.virtlogd_conf):
            file.chmod(0o600)
        # As by its membership in group libvirt.
        self.host.libvirt_socket.chmod(0o666)
        metrics.write(str(metrics_file), health.Report(
            health.DaemonState.UP), periodic.Totals())
        self.host.connect().createXML(guest.domain_xml(
            self.host.directory, guest.boot_sector(count=LINES),
            [guest.tcp_serial(guest.free_port(), self.log)]))

        def has_written_all() -> bool:
            # It may be rotated meanwhile.
            with contextlib.suppress(FileNotFoundError):
                return self.written().endswith(guest.lines(LINES, LINES))
            return False
        until(has_written_all, 'the guest writes')

    def files(self) -> list[Path]:
        """Of the log, oldest first."""
        return [*sorted(self.log.parent.glob('console.log.*'), reverse=True),
                self.log]

    def written(self) -> bytes:
        return b''.join(file.read_bytes() for file in self.files())

    def check(self) -> tuple[int, dict[str, str]]:
        """Exit status of the status check, and what is no success."""
        ran = self.user.run('virtlogd-driver-status', 'check', '--json')
        assert ran.returncode in (0, 1, 2), ran.stdout + ran.stderr
        assert ran.stderr == ''
        return ran.returncode, {
            one['check']: one['details']
            for one in json.loads(ran.stdout)['checks'] if one['result']}


@pytest.fixture
def node(tmp_path: Path, use: Use) -> Node:
    return use(Node(use(LibvirtHost(
        tmp_path / 'host', max_size=4096, max_backups=3))))


def output(ran: subprocess.CompletedProcess[str]) -> str:
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ''
    return ran.stdout


def test_the_log_of_root_is_read(node: Node) -> None:
    files = node.files()
    assert len(files) == 3
    for file in files:
        status = file.stat()
        assert (status.st_uid, status.st_mode & 0o777) == (0, 0o600)
        assert node.user.run('cat', str(file)).returncode != 0
    shown = output(node.user.run('virtlogd-console', 'show', 'guest1'))
    assert shown.encode() == node.written().replace(b'\r\n', b'\n')


def test_the_reader_has_a_user_of_its_own(tmp_path: Path, use: Use) -> None:
    """It is nobody but for the one capability."""
    node = Node(
        LibvirtHost(tmp_path / 'host', max_size=4096, max_backups=3),
        '[virtlogd_privileged]\nuser = nobody\ngroup = nogroup\n')
    use(node.host)
    use(node)
    followed = tmp_path / 'followed'
    node.user.start('virtlogd-console', 'follow', 'guest1', log=followed)
    until(lambda: f'line {LINES:08}' in followed.read_text(),
          'it is followed')
    (reader,) = _helpers(node)
    status = dict(
        line.split(':\t', 1) for line in
        Path(f'/proc/{reader}/status').read_text().splitlines())
    users = {pwd.getpwnam('nobody').pw_uid}
    assert set(map(int, status['Uid'].split())) == users
    assert int(status['CapEff'], 16) == 1 << capabilities.CAP_DAC_READ_SEARCH
    assert (status['CapBnd'].strip('0'), status['NoNewPrivs']) == ('', '1')
    shown = output(node.user.run('virtlogd-console', 'show', 'guest1'))
    assert shown.encode() == node.written().replace(b'\r\n', b'\n')


def test_it_streams(node: Node) -> None:
    state, streamed = node.log.parent / 'state', node.host.directory / 'out'
    # A guest that is not in it is given from its beginning.
    state.write_text('{"version": 1, "logs": []}')
    node.user.start('virtlogd-console', 'stream', '--state', str(state),
                    log=streamed)

    def texts() -> list[str]:
        # What it says goes there, too, such as that it was held up.
        return [one['text'] for one in map(json.loads, (
            line for line in streamed.read_text().split('\n')[:-1]
            if line.startswith('{'))) if 'text' in one]

    until(lambda: len(texts()) == LINES, 'all of it is streamed')
    assert texts() == [
        line.decode() for line in node.written().splitlines()]


def test_a_kept_log_of_root_is_read(node: Node) -> None:
    """It is kept with no more than nova's user may, and read likewise."""
    written = node.written().replace(b'\r\n', b'\n')
    instance = node.instances / '6ba7b810-9dad-11d1-80b4-00c04fd430c8'
    node.log.parent.rename(instance)
    os.chown(node.instances, node.user.uid, -1)
    program = textwrap.dedent(f'''\
        from virtlogd_driver.history import deleted
        print(deleted.keep(
            deleted.Keeping({str(node.instances)!r}, 'host', 60, 1 << 20),
            {str(instance)!r}, deleted.About(name='gone'), 7.0).path)
        ''')
    kept = Path(output(node.user.run(
        sys.executable, '-c', program)).strip())
    assert len(list(kept.glob('console.log*'))) == 3
    shown = node.user.run('virtlogd-console', 'show', 'gone')
    assert (shown.returncode, shown.stdout.encode()) == (0, written)
    assert 'not here any more' in shown.stderr


def test_virtlogd_is_asked_and_a_dead_log_comes_back(node: Node) -> None:
    def state() -> str:
        (port,) = json.loads(output(node.user.run(
            'virtlogd-console', 'list', '--json')))
        log: str = port['log']
        return log

    assert state() == 'alive'
    node.host.stop_virtlogd(signal.SIGKILL)
    node.host.start_virtlogd()
    assert state() == 'dead'
    assert output(node.user.run('virtlogd-console', 'reattach', 'guest1')) == (
        'guest1: the log is alive again\n')
    assert state() == 'alive'


@pytest.mark.parametrize('command', [
    ('virtlogd-driver-status', 'check'),
    ('virtlogd-driver-status', 'check', '--json',
     '--config-file', '/etc/nova/nova.conf'),
    ('virtlogd-console', 'check'),
])
def test_all_is_well(node: Node, command: tuple[str, ...]) -> None:
    """Nothing but nova.conf says how helpers are started: nothing at all."""
    assert 'helper_command' not in (
        node.user.etc / 'nova' / 'nova.conf').read_text()
    assert 'stdio handler logd' in output(node.user.run(*command))


def test_what_libvirt_s_own_files_say(node: Node) -> None:
    """They are root's alone."""
    assert node.user.run('cat', str(node.host.qemu_conf)).returncode != 0
    node.host.qemu_conf.write_text('stdio_handler = "file"\n')
    node.host.virtlogd_conf.write_text('max_clients = "1024"\n')
    status, found = node.check()
    assert status == 2
    assert set(found) == {'Versions', 'Stdio handler', 'Rotation',
                          'Disk budget'}
    assert 'stdio_handler is "file"' in found['Versions']
    assert 'max_clients must be' in found['Rotation']


def test_the_status_check_says_who_refuses(node: Node) -> None:
    (node.user.etc / 'nova/rootwrap.d/virtlogd-driver.filters').unlink()
    # Newer releases of oslo.rootwrap let every privsep-helper start.
    if node.check()[0]:
        _, found = node.check()
        assert 'no filter matched' in found['Privileged helpers']
    node.user.sudoers.unlink()
    status, found = node.check()
    assert status == 2
    assert set(found) == {'Privileged helpers', 'virtlogd', 'Logs',
                          'Stdio handler', 'Rotation', 'Disk budget'}
    assert 'sudo: a password is required' in found['Privileged helpers']
    assert 'in sudoers: nova ALL' in found['Privileged helpers']
    ran = node.user.run('virtlogd-console', 'show', 'guest1')
    assert ran.returncode == 1
    assert 'sudo: a password is required' in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_nova_compute_goes_the_same_way(node: Node, tmp_path: Path) -> None:
    """And says once what refuses its helpers, not with each pass."""
    conf = node.user.etc / 'nova' / 'nova.conf'
    # For this process: nova's user makes no directory of its own here.
    conf.write_text(conf.read_text().replace(
        '[DEFAULT]\n', '[DEFAULT]\nmy_ip = 127.0.0.1\n'
        f'state_path = {node.instances}\n').replace(
        '[virtlogd]\n', '[virtlogd]\nhealth_interval = 1\n').replace(
        '[libvirt]\n', '[libvirt]\nvirt_type = qemu\n'))
    os.chown(node.instances, node.user.uid, -1)
    metrics_file = node.host.directory / 'virtlogd.prom'
    os.chown(metrics_file, node.user.uid, -1)
    os.chown(metrics_file.parent, node.user.uid, -1)

    def passes() -> float:
        return metrics.last_pass(str(metrics_file)) or 0

    def compute(log: Path) -> Callable[[str], list[str]]:
        node.user.start(
            'env', 'OS_NOVA_DISABLE_EVENTLET_PATCHING=1', 'python', '-W',
            'ignore', '-c', PROGRAM, '/etc/nova/nova.conf', log=log)
        began = passes()
        until(lambda: passes() > began, 'a health pass', 60)
        return lambda text: [line for line in log.read_text().splitlines()
                             if text in line]

    said = compute(tmp_path / 'well.log')
    assert 'stdio handler logd' in said('Guest consoles')[0]
    assert said('exited non-zero') == said('virtlogd is') == []
    node.user.sudoers.unlink()
    said = compute(tmp_path / 'refused.log')
    until(lambda: said('virtlogd is refused'), 'it is said')
    assert 'sudo: a password is required' in said('virtlogd is refused')[0]
    lines = said('')
    for _ in range(3):
        began = passes()
        until(lambda began=began: passes() > began, 'another pass', 60)
    assert said('') == lines


#: A process of nova's user with helpers, as nova-compute is one: it asks at
#: once, and again when it is told to.
ASKS = """
import pathlib, sys, time
from oslo_config import cfg
from oslo_privsep import priv_context
cfg.CONF(['--config-file', '/etc/nova/nova.conf'], project='nova')
priv_context.init(root_helper=[
    'sudo', '-n', 'nova-rootwrap', '/etc/nova/rootwrap.conf'])
from virtlogd_driver import exception
from virtlogd_driver.console_log import privileged as log
from virtlogd_driver.console_log import reader
from virtlogd_driver.virtlogd import privileged as virtlogd
socket, path, directory = sys.argv[1:]
for number in range(3):
    while number and not pathlib.Path(directory, str(number)).exists():
        time.sleep(0.05)
    # Nobody else is late than those that are stopped for question 1.
    log.context.timeout = seconds = 3.0 if number == 1 else 30.0
    try:
        print(number, 'virtlogd', *virtlogd.probe(socket, [], seconds),
              flush=True)
    except TimeoutError as e:
        print(number, 'virtlogd', e, flush=True)
    # As where the log was rotated: its files are opened again.
    reader.forget(str(pathlib.Path(path).parent))
    try:
        print(number, 'log', len(reader.read_tail(path, 10).data), flush=True)
    except exception.LogRefused as e:
        print(number, 'log', e, flush=True)
"""
CONTEXTS = ('virtlogd_driver.console_log.privileged.context',
            'virtlogd_driver.virtlogd.privileged.virtlogd_context')


def _helpers(node: Node) -> list[int]:
    """Processes of root's, by the contexts that they are for."""
    own = os.readlink(f'/proc/{node.user.pid}/ns/mnt')
    found = []
    for path in Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(OSError):
            command = (path / 'cmdline').read_bytes().decode().split('\0')
            if '--privsep_context' in command and (
                    set(command) & set(CONTEXTS)) and (
                    'privsep-helper' in command[1]) and (
                    os.readlink(path / 'ns/mnt') == own):
                found.append(int(path.name))
    return found


def test_helpers_that_are_stopped_hold_up_nobody(
        node: Node, tmp_path: Path) -> None:
    """Nova's user cannot end them, and is not held up by them."""
    said = tmp_path / 'asks.log'
    triggers = node.host.directory
    node.user.start('python', '-W', 'ignore', '-c', ASKS,
                    str(node.host.virtlogd_socket), str(node.log),
                    str(triggers), log=said)

    def lines(number: int) -> dict[str, str]:
        found = [line.split(' ', 2) for line in said.read_text().splitlines()
                 if line.startswith(f'{number} ')]
        return {one[1]: one[2] for one in found}

    until(lambda: len(lines(0)) == 2, 'it asks', 60)
    assert lines(0) == {'virtlogd': 'up  ()', 'log': '10'}
    stopped = _helpers(node)
    assert len(stopped) == 2
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        (triggers / '1').touch()
        until(lambda: len(lines(1)) == 2, 'it has its answers', 60)
        for text in lines(1).values():
            assert 'did not answer within' in text
            assert 'kill -CONT' in text
        (triggers / '2').touch()
        until(lambda: len(lines(2)) == 2, 'it asks others', 60)
        assert lines(2) == lines(0)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    until(lambda: not set(stopped) & set(_helpers(node)), 'those have ended')


def test_a_link_in_place_of_a_log_is_not_written(node: Node) -> None:
    secret = node.host.directory / 'secret'
    secret.write_text('of root')
    node.host.stop_virtlogd(signal.SIGKILL)
    node.host.start_virtlogd()
    for command in (('rm', '-f', str(node.log)),
                    ('ln', '-s', str(secret), str(node.log))):
        output(node.user.run(*command))
    ran = node.user.run('virtlogd-console', 'reattach', 'guest1')
    assert ran.returncode == 1
    assert f'{node.log} is a link' in ran.stderr
    assert secret.read_text() == 'of root'
    output(node.user.run('rm', str(node.log)))
    assert 'alive again' in output(
        node.user.run('virtlogd-console', 'reattach', 'guest1'))


@pytest.mark.parametrize('spoil', [
    lambda etc, uid: os.chown(etc / 'nova.conf', uid, -1),
    lambda etc, uid: (etc / 'nova.conf').chmod(0o666),
    lambda etc, uid: os.chown(etc, uid, -1),
], ids=['owner', 'mode', 'directory'])
def test_a_configuration_that_nova_may_write_is_refused(
        node: Node, spoil: Callable[[Path, int], None]) -> None:
    spoil(node.user.etc / 'nova', node.user.uid)
    for command in (('show', 'guest1'), ('reattach', 'guest1')):
        ran = node.user.run('virtlogd-console', *command)
        assert ran.returncode != 0
        assert 'does not go by /etc/nova/nova.conf' in ran.stderr
        assert 'chown root:nova' in ran.stderr


@pytest.mark.parametrize('command', [
    ('cat', '/etc/shadow'),
    ('sh', '-c', 'id'),
])
def test_nothing_else_is_to_be_had(node: Node,
                                   command: tuple[str, ...]) -> None:
    ran = node.user.run('sudo', '-n', 'nova-rootwrap',
                        '/etc/nova/rootwrap.conf', *command)
    assert ran.returncode == rootwrap.RC_UNAUTHORIZED, ran.stderr
    assert 'password' in node.user.run('sudo', '-n', *command).stderr
