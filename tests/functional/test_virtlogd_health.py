# SPDX-License-Identifier: Apache-2.0
"""A real virtlogd is asked with least privilege, and by the status command."""

import contextlib
import ctypes
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import fixtures
import pytest
from oslo_config import cfg

from tests.lab import guest
from tests.lab.daemons import LibvirtHost
from tests.lab.wait import until
from virtlogd_driver import exception
from virtlogd_driver.node import metrics, watch
from virtlogd_driver.virtlogd import health, periodic, privileged, rpc, viewer
from virtlogd_driver.virtlogd.health import LogState

Use = Callable[[fixtures.Fixture], fixtures.Fixture]


def start(host: LibvirtHost, name: str = 'guest1',
          interval: float = 0.1) -> Path:
    """A guest with one logged port; the path of its log."""
    log = host.log_directory / f'{name}.log'
    host.connect().createXML(guest.domain_xml(
        host.directory, guest.boot_sector(interval=interval),
        [guest.tcp_serial(guest.free_port(), log)], name=name))
    until(lambda: log.exists() and log.stat().st_size > 0, 'the log')
    return log


def test_position_is_exact(libvirt_host: LibvirtHost) -> None:
    log = start(libvirt_host)
    with rpc.Connection(str(libvirt_host.virtlogd_socket), 5) as virtlogd:
        libvirt_host.connect().lookupByName('guest1').suspend()
        libvirt_host.wait_until_written()
        found = virtlogd.position(str(log))
        assert found == rpc.Position(log.stat().st_ino, log.stat().st_size)
        assert virtlogd.position(f'{log}.none') is None
        virtlogd.ping()


def test_log_with_a_name_of_many_bytes(libvirt_host: LibvirtHost) -> None:
    log = start(libvirt_host, 'gäst-' + 'ü' * 40)
    with rpc.Connection(str(libvirt_host.virtlogd_socket), 5) as virtlogd:
        assert virtlogd.position(str(log)) is not None


def test_log_opened_twice_is_refused(libvirt_host: LibvirtHost) -> None:
    log = start(libvirt_host)
    with rpc.Connection(str(libvirt_host.virtlogd_socket), 5) as virtlogd:
        with pytest.raises(exception.VirtlogdError, match='busy'):
            virtlogd.open_log('qemu', uuid.uuid4(), 'other', str(log))
        virtlogd.ping()


def test_virtlogd_answers_500_at_once(libvirt_host: LibvirtHost) -> None:
    """tools/bench/health.py tells how soon."""
    log = str(start(libvirt_host))
    libvirt_host.make_own()
    privileged.virtlogd_context.set_client_mode(False)
    try:
        state, _, answers = privileged.probe(
            str(libvirt_host.virtlogd_socket), [('guest1', log)] * 500, 60)
    finally:
        privileged.virtlogd_context.set_client_mode(True)
    assert (state, answers) == (privileged.UP, [privileged.OPEN] * 500)


# The privileged helper, as nova-compute has it

@pytest.fixture
def helper(libvirt_host: LibvirtHost, tmp_path: Path) -> Iterator[None]:
    """privsep's daemons for real, with what they keep of root."""
    conf = tmp_path / 'helper.conf'
    conf.write_text(
        f'[virtlogd]\nvirtlogd_socket = {libvirt_host.virtlogd_socket}\n')
    command = f'{sys.prefix}/bin/privsep-helper --config-file {conf}'
    contexts = (privileged.virtlogd_context, privileged.viewer_context)
    with contextlib.ExitStack() as stack:
        for context in contexts:
            cfg.CONF.set_override('helper_command', command,
                                  group=context.cfg_section)
            stack.callback(cfg.CONF.clear_override, 'helper_command',
                           group=context.cfg_section)
            stack.callback(context.stop)
        yield


def capabilities_of(child: int) -> int:
    status = Path(f'/proc/{child}/status').read_text()
    (line,) = [line for line in status.splitlines()
               if line.startswith('CapEff:')]
    return int(line.split()[1], 16)


def helpers() -> list[int]:
    """The privsep daemons that run."""
    found = []
    for entry in Path('/proc').iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (
                    b'privsep-helper' in (entry / 'cmdline').read_bytes()):
                found.append(int(entry.name))
    return found


def test_root_without_any_capability_is_enough_for_all_but_viewers(
        libvirt_host: LibvirtHost, helper: None) -> None:
    log = start(libvirt_host)
    connection = libvirt_host.connect()
    libvirt_host.stop_virtlogd(signal.SIGKILL)
    libvirt_host.start_virtlogd()
    port = watch.list_ports(connection)[0]
    socket_path = str(libvirt_host.virtlogd_socket)
    assert health.ask(socket_path, [('guest1', str(log))], 5) == (
        'up', '', ('closed',))
    (daemon,) = helpers()
    assert capabilities_of(daemon) == 0
    assert watch.reattach_log(connection, port, socket_path, 5) == ''
    assert health.ask(socket_path, [('guest1', str(log))], 5) == (
        'up', '', ('open',))


def test_viewers_are_disconnected_with_one_capability(
        libvirt_host: LibvirtHost, helper: None) -> None:
    start(libvirt_host, interval=0)
    (port,) = watch.list_ports(libvirt_host.connect())
    assert port.listener
    with socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.connect(port.listener)

        def is_stuck() -> list[viewer.Viewer]:
            return [found for found in viewer.viewers([port.listener])
                    if found.stuck(viewer.STUCK_AFTER)]

        (found,) = until(is_stuck, 'the viewer is stuck', 60)
        assert not privileged.disconnect(b'x', 0.0)
        (daemon,) = helpers()
        assert capabilities_of(daemon) == 1 << 12, 'CAP_NET_ADMIN'
        # Its kernel may take some more, now and then.
        until(lambda: privileged.disconnect(found.socket_id, 0.0),
              'the viewer is disconnected', 60)
        assert is_stuck() == []


def test_helper_knows_no_other_virtlogd_than_the_configured_one(
        libvirt_host: LibvirtHost, helper: None, tmp_path: Path) -> None:
    """A directory of the caller's own names any file as a guest's log."""
    own = tmp_path / 'own'
    (own / 'qemu').mkdir(parents=True)
    (own / 'virtlogd-sock').symlink_to(libvirt_host.virtlogd_socket)
    evil = tmp_path / 'evil'
    domain = str(uuid.uuid4())
    (own / 'qemu' / 'x.xml').write_text(
        f"<domstatus><domain><uuid>{domain}</uuid><devices><serial>"
        f"<log file='{evil}'/></serial></devices></domain></domstatus>")
    path = str(own / 'virtlogd-sock')
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind('\0own')
        listener.listen()
        with pytest.raises(exception.VirtlogdError, match='virtlogd_socket'):
            privileged.open_log(path, domain, 'x', str(evil), 'own', 5)
    assert not evil.exists()
    state, reason, _ = health.ask(path, [], 5)
    assert state == privileged.REFUSED
    assert 'virtlogd_socket' in reason


def test_errors_cross_the_helper_as_they_are(
        libvirt_host: LibvirtHost, helper: None) -> None:
    with pytest.raises(exception.ReattachFailed, match='no-such'):
        privileged.open_log(str(libvirt_host.virtlogd_socket),
                            str(uuid.uuid4()), 'no-such', '/log', 'r', 1)


def test_virtlogd_refuses_who_is_not_root(
        libvirt_host: LibvirtHost) -> None:
    """Even one who may connect: the user id decides, no capability."""
    libvirt_host.virtlogd_socket.chmod(0o666)
    asked = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(f'''\
            import os
            from virtlogd_driver.virtlogd import rpc
            os.setgroups([]); os.setgid(65534)
            os.setuid(65534)
            try:
                with rpc.Connection({str(libvirt_host.virtlogd_socket)!r},
                                    30) as virtlogd:
                    virtlogd.ping()
            except rpc.exception.VirtlogdDown as e:
                print(e)
            ''')], capture_output=True, text=True, check=True)
    assert 'does not run as its user' in asked.stdout


# eventlet

def test_pass_under_eventlet_while_libvirt_hangs(
        libvirt_host: LibvirtHost) -> None:
    """nova 31 to 33: green threads, and libvirt in eventlet's thread pool.

    Others go on while a call of libvirt waits, or else the test does not end.
    """
    start(libvirt_host)
    program = textwrap.dedent(f'''\
        import eventlet
        eventlet.monkey_patch()
        import os, signal
        import libvirt
        from eventlet import tpool
        from oslo_config import cfg
        from virtlogd_driver import conf
        from virtlogd_driver.node import watch
        from virtlogd_driver.virtlogd import periodic, privileged
        from virtlogd_driver.virtlogd.health import LogState
        privileged.virtlogd_context.set_client_mode(False)
        conf.register_opts(cfg.CONF)
        cfg.CONF.set_override(
            'virtlogd_socket', {str(libvirt_host.virtlogd_socket)!r},
            group='virtlogd')
        connection = libvirt.open({libvirt_host.uri!r})
        waiting, during = 0, 0
        def run(*arguments):
            global waiting, during
            waiting, during = waiting + 1, 0
            try:
                return tpool.execute(*arguments)
            finally:
                waiting -= 1
        task = watch.health_task(
            lambda: connection,
            periodic.Settings({str(libvirt_host.virtlogd_socket)!r}, 0.5, 1,
                              patience=1),
            run=run)
        def until(holds):
            global during
            while not (task.report and holds()):
                eventlet.sleep(0.01)
                during += waiting
        def is_alive():
            return (task.report.count(LogState.ALIVE) == 1
                    and not task.report.libvirt)
        task.start()
        until(is_alive)
        os.kill({libvirt_host.libvirtd_pid}, signal.SIGSTOP)
        until(lambda: during > 50)
        until(lambda: 'did not answer' in task.report.libvirt)
        os.kill({libvirt_host.libvirtd_pid}, signal.SIGCONT)
        until(is_alive)
        task.stop()
        os._exit(0)
        ''')
    try:
        subprocess.run([sys.executable, '-W', 'ignore', '-c', program],
                       check=True, timeout=60)
    finally:
        os.kill(libvirt_host.libvirtd_pid, signal.SIGCONT)


def test_metrics_of_a_real_pass(libvirt_host: LibvirtHost, helper: None,
                                tmp_path: Path) -> None:
    start(libvirt_host)
    connection = libvirt_host.connect()
    path = tmp_path / 'virtlogd.prom'
    task = watch.health_task(
        lambda: connection,
        periodic.Settings(str(libvirt_host.virtlogd_socket), 60, 5),
        metrics_file=str(path))
    report = task.run_once()
    assert report.count(LogState.ALIVE) == 1
    text = path.read_text()
    assert 'virtlogd_driver_virtlogd{state="up"} 1.0' in text
    assert 'virtlogd_driver_console_logs{state="alive"} 1.0' in text
    assert metrics.last_pass(str(path)) == report.time


# virtlogd-driver-status

class Node(fixtures.Fixture):
    """A compute node as the status command sees it."""

    def __init__(self, host: LibvirtHost) -> None:
        super().__init__()
        self.host = host

    def _setUp(self) -> None:
        self.conf = self.host.directory / 'nova.conf'
        self.metrics_file = self.host.directory / 'virtlogd.prom'
        (self.host.directory / 'instances').mkdir()
        helper = (f'helper_command = {sys.prefix}/bin/privsep-helper '
                  f'--config-file {self.conf}')
        self.conf.write_text(textwrap.dedent(f'''\
            [DEFAULT]
            compute_driver = virtlogd_driver.VirtlogdDriver
            instances_path = {self.host.directory}/instances
            [libvirt]
            connection_uri = {self.host.uri}
            [serial_console]
            enabled = true
            [virtlogd]
            virtlogd_socket = {self.host.virtlogd_socket}
            virtlogd_conf = {self.host.virtlogd_conf}
            qemu_conf = {self.host.qemu_conf}
            metrics_file = {self.metrics_file}
            [virtlogd_privileged]
            {helper}
            [virtlogd_privileged_daemon]
            {helper}
            '''))
        self.made_pass(0)

    def made_pass(self, seconds_ago: float) -> None:
        """As if nova-compute had made a health pass."""
        metrics.write(str(self.metrics_file), health.Report(
            health.DaemonState.UP, time=time.time() - seconds_ago),
            periodic.Totals())

    def check(self) -> tuple[int, dict[str, str]]:
        """Exit status, and the details of what is no success."""
        ran = subprocess.run(
            [sys.executable, '-W', 'ignore', '-m',
             'virtlogd_driver.cmd.status', '--config-file', str(self.conf),
             'check', '--json'],
            capture_output=True, text=True, check=False, timeout=120)
        assert ran.returncode in (0, 1, 2), ran.stdout + ran.stderr
        return ran.returncode, {
            one['check']: one['details']
            for one in json.loads(ran.stdout)['checks'] if one['result']}


@pytest.fixture
def node(libvirt_host: LibvirtHost, use: Use) -> Node:
    return use(Node(libvirt_host))


def test_status_of_a_good_node_and_of_a_dead_log(node: Node) -> None:
    start(node.host)
    assert node.check() == (0, {})
    node.host.stop_virtlogd(signal.SIGKILL)
    node.host.start_virtlogd()
    node.made_pass(1000)
    status, found = node.check()
    assert status == 2
    assert set(found) == {'Logs', 'Health pass'}
    assert 'guest1' in found['Logs']


def test_status_while_virtlogd_is_down(node: Node) -> None:
    start(node.host)
    node.host.stop_virtlogd()
    status, found = node.check()
    assert status == 2
    assert set(found) == {'virtlogd', 'Logs'}
    assert 'systemctl start' in found['virtlogd']


def test_status_while_virtlogd_hangs(node: Node) -> None:
    start(node.host)
    os.kill(node.host.virtlogd_pid, signal.SIGSTOP)
    try:
        status, found = node.check()
    finally:
        os.kill(node.host.virtlogd_pid, signal.SIGCONT)
    assert status == 2
    assert set(found) == {'Versions', 'virtlogd', 'Logs'}
    assert 'SIGCONT' in found['virtlogd']


def test_status_while_libvirtd_is_down(node: Node) -> None:
    node.host.stop_libvirtd()
    status, found = node.check()
    assert status == 2
    assert set(found) == {'Versions', 'Logs'}
    assert 'virtqemud' in found['Versions']


def test_status_of_unbounded_logs(tmp_path: Path, use: Use) -> None:
    host = use(LibvirtHost(tmp_path / 'host', max_size=0,
                           stdio_handler='file'))
    node = use(Node(host))
    start(host)
    status, found = node.check()
    assert status == 2
    assert set(found) == {'Versions', 'Stdio handler', 'Rotation',
                          'Disk budget', 'Logs'}
    assert 'max_size' in found['Rotation']
    assert 'unbounded' in found['Logs']


def test_status_of_a_small_disk(tmp_path: Path, use: Use) -> None:
    """Logs may outgrow it; then it is full."""
    directory = tmp_path / 'host' / 'guests'
    directory.mkdir(parents=True)
    # Before the host takes its own copy of the mounts.
    subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=4m', 'disk',
                    directory], check=True)
    try:
        node = use(Node(use(LibvirtHost(tmp_path / 'host'))))
        start(node.host)
        status, found = node.check()
        assert status == 1
        assert set(found) == {'Disk budget'}
        assert f'on {directory} may grow to 8 MiB' in found['Disk budget']
        assert 'Lower max_size' in found['Disk budget']
        with (directory / 'ballast').open('wb') as ballast:
            free = os.statvfs(directory)
            os.posix_fallocate(
                ballast.fileno(), 0, free.f_bfree * free.f_frsize)
        status, found = node.check()
        assert status == 2
        assert f'{directory} is full' in found['Disk budget']
    finally:
        subprocess.run(['umount', '--lazy', directory], check=True)


def test_status_of_a_node_without_ports(node: Node) -> None:
    start(node.host)
    (port,) = watch.list_ports(node.host.connect())
    assert port.listener
    text = node.conf.read_text()
    only = f'port_range = {port.listener[1]}:{port.listener[1]}'
    node.conf.write_text(text.replace(
        'enabled = true', f'enabled = true\n{only}'))
    status, found = node.check()
    assert status == 1
    assert set(found) == {'Serial ports'}
    assert '0 of 1 ports are free. Widen' in found['Serial ports']
    node.conf.write_text(text.replace(
        'enabled = true', 'enabled = true\nproxyclient_address = 192.0.2.1'))
    status, found = node.check()
    # It may come later, with the network.
    assert status == 1
    assert set(found) == {'Serial ports'}
    assert '192.0.2.1' in found['Serial ports']


class Stalled(fixtures.Fixture):
    """A file system in user space whose server never answers."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory

    def _setUp(self) -> None:
        device = self.directory.with_suffix('.fuse')
        os.mknod(device, stat.S_IFCHR | 0o600, os.makedev(10, 229))
        self.server = os.open(device, os.O_RDWR)
        self.addCleanup(os.close, self.server)
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mount(
            b'none', os.fsencode(self.directory), b'fuse.stalled', 0,
            f'fd={self.server},rootmode=40000,user_id=0,group_id=0'.encode()
        ) == 0, os.strerror(ctypes.get_errno())
        self.addCleanup(libc.umount2, os.fsencode(self.directory), 2)


@pytest.mark.parametrize(('linked', 'code'), [(False, 1), (True, 2)])
def test_status_of_a_stalled_file_system(node: Node, use: Use, linked: bool,
                                         code: int) -> None:
    instances = node.host.directory / 'instances'
    where = node.host.directory / 'stalled' if linked else instances
    if linked:
        where.mkdir()
        instances.rmdir()
        instances.symlink_to(where)
    use(Stalled(where))
    status, found = node.check()
    assert status == code
    assert set(found) == {'Disk budget', 'Log directories'}
    assert ('does not answer' if linked else 'fuse.stalled') in (
        found['Log directories'])


def test_status_of_a_node_that_is_not_set_up(node: Node) -> None:
    text = node.conf.read_text()
    node.conf.write_text(
        text.replace('compute_driver = virtlogd_driver.VirtlogdDriver', '')
        .replace('privsep-helper ', 'no-such-helper '))
    node.host.virtlogd_conf.write_text('max_size = 2M\n')
    node.metrics_file.unlink()
    status, found = node.check()
    assert status == 2
    assert set(found) >= {'Driver in nova', 'Privileged helpers', 'virtlogd',
                          'Rotation', 'Health pass'}
    assert 'virtlogd.conf:1' in found['Rotation']
    assert 'no-such-helper' in found['Privileged helpers']
    assert 'helper_command' in found['Privileged helpers']
