# SPDX-License-Identifier: Apache-2.0
"""A real privsep daemon reads files that this process can't."""

import contextlib
import errno
import importlib.util
import os
import pathlib
import pwd
import shlex
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib.machinery import ModuleSpec

import pytest
from oslo_config import cfg

from virtlogd_driver import exception, privileged_process
from virtlogd_driver.console_log import (
    chain,
    handover,
    log,
    opened,
    privileged,
    reader,
)

ROOT = os.geteuid() == 0
NOBODY = 65534


class Daemon:
    """A daemon, and a count of the calls that it is sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        channel = privileged.context.channel
        assert channel is not None
        call = channel.remote_call

        def counted(*args: object) -> object:
            self.calls += 1
            return call(*args)

        monkeypatch.setattr(channel, 'remote_call', counted)


@pytest.fixture(scope='module')
def top() -> Iterator[pathlib.Path]:
    """What nova's configuration names; instances_path itself is a link.

    Nobody may search pytest's own directory.
    """
    with tempfile.TemporaryDirectory(prefix='nova-') as name:
        top = pathlib.Path(name)
        top.chmod(0o755)
        _fill(top)
        yield top


def _fill(top: pathlib.Path) -> None:
    (top / 'big-disk').mkdir()
    (top / 'instances').symlink_to(top / 'big-disk')
    (top / 'logs').mkdir()
    (top / 'nova.conf').write_text(
        f'[DEFAULT]\nstate_path = {top}\n'
        f'[virtlogd]\nlog_directories = {top}/logs\n')


@pytest.fixture(scope='module')
def helper(top: pathlib.Path) -> Iterator[None]:
    """privsep-helper with nova's configuration, as root or as a user."""
    # A user is root in a user namespace, over the user's own files.
    command = [] if ROOT else ['unshare', '--map-root-user']
    command += [
        'env', f'PYTHONPATH={os.pathsep.join(sys.path)}',
        sys.executable, '-W', 'ignore', '-c',
        'from oslo_privsep.daemon import helper_main; '
        # A test may pause between two files.
        'from virtlogd_driver.console_log import neighbours; '
        'neighbours.ROTATION_NS = 3600 * 10 ** 9; helper_main()',
        '--config-file', f'{top}/nova.conf']
    cfg.CONF.set_override(
        'helper_command', shlex.join(command), group='virtlogd_privileged')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(privileged.context, 'client_mode', True)
        patch.setattr(privileged.context, 'channel', None)
        privileged.context.start()
        yield
        privileged.context.stop()
    cfg.CONF.clear_override('helper_command', group='virtlogd_privileged')


@pytest.fixture
def daemon(helper: None, monkeypatch: pytest.MonkeyPatch) -> Daemon:
    return Daemon(monkeypatch)


@pytest.fixture
def instances(top: pathlib.Path) -> Iterator[pathlib.Path]:
    path = top / 'instances'
    (path / 'guest').mkdir()
    yield path
    reader.forget(str(path / 'guest'))
    shutil.rmtree(path / 'guest')


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """As nova-compute, to which root's files are closed."""
    if ROOT:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if ROOT:
            os.seteuid(0)


def write(path: pathlib.Path, data: bytes, mode: int = 0) -> None:
    path.write_bytes(data)
    path.chmod(mode)


def test_one_call_for_the_whole_log(
        daemon: Daemon, instances: pathlib.Path) -> None:
    for number in range(4, -1, -1):
        write(instances / f'guest/console.g1.log.{number}', b'%d' % number)
    write(instances / 'guest/console.g1.log', b'\xff\0')
    path = str(instances / 'guest/console.g1.log')
    with unprivileged():
        read = reader.read_tail(path, 99)
        assert (read.data, read.exact) == (b'43210\xff\0', True)
        assert daemon.calls == 1
        since = reader.read_from(path, read.position, 99)
        assert (since.data, since.missed) == (b'', 0)
        assert since.position == read.position
        assert reader.read_from(path, None, 3).data == b'432'
        assert reader.read_tail(path, 3) == log.LogRead(
            b'0\xff\0', read.position, True)
        assert daemon.calls == 1


def test_one_call_for_a_rotation(
        daemon: Daemon, instances: pathlib.Path) -> None:
    live = instances / 'guest/console.log'
    write(live, b'1')
    with unprivileged():
        assert reader.read_tail(str(live), 99).data == b'1'
    for turn in range(3):
        if live.with_name('console.log.0').exists():
            live.with_name('console.log.0').rename(
                live.with_name('console.log.1'))
        live.rename(live.with_name('console.log.0'))
        write(live, b'new')
        with unprivileged():
            calls = daemon.calls
            for _ in range(3):
                assert reader.read_tail(str(live), 99).data == (
                    b'1new', b'1newnew', b'newnewnew')[turn]
                assert daemon.calls == calls + 1


def test_a_process_that_may_have_no_socket_can_be_passed_nothing(
        monkeypatch: pytest.MonkeyPatch) -> None:
    def receiver() -> handover.Receiver:
        raise OSError(errno.EMFILE, 'Too many open files')
    monkeypatch.setattr(reader, '_receivers', [])
    monkeypatch.setattr(reader, '_passing', reader._Passing())
    monkeypatch.setattr(handover, 'Receiver', receiver)
    assert not reader.can_pass()


def test_bytes_where_no_file_can_be_passed(
        daemon: Daemon, instances: pathlib.Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture) -> None:
    data = os.urandom(3 << 20)
    caplog.set_level('INFO')
    path = str(instances / 'guest/console.log')
    write(instances / 'guest/console.log', data)
    now = 0.0
    monkeypatch.setattr(reader, '_passing', reader._Passing(lambda: now))
    with unprivileged():
        assert reader.can_pass()
        # What a security module keeps from being passed, or there is no way.
        for method, value in (
                ('take', lambda box, count: None),
                ('address', (b'\0nowhere', b'secret'))):
            with monkeypatch.context() as patch:
                patch.setattr(handover.Receiver, method, value)
                assert not reader.can_pass()
                daemon.calls = 0
                assert reader.read_tail(path, len(data)).data == data
                assert reader.read_from(path, None, len(data)).data == data
                read = reader.read_tail(path, 9)
                assert reader.read_from(
                    path, read.position, 9) == log.LogSince(
                        b'', read.position, 0, 0)
                # That it cannot be is found once in a while.
                assert daemon.calls == 5
            now += reader.RETRY
            assert reader.read_tail(path, 9) == read
            reader.forget(str(instances / 'guest'))
    assert [record.levelname for record in caplog.records
            if 'pass' in record.message] == ['WARNING', 'INFO'] * 2


def test_only_to_the_caller(
        daemon: Daemon, instances: pathlib.Path) -> None:
    """The address that it words is a service's, or another process's."""
    write(instances / 'guest/console.log', b'log')
    path = str(instances / 'guest/console.log')
    wanted = opened.pack_wanted(log.Wanted())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind('')
        notify.setblocking(False)
        for name in (notify.getsockname(), b'/run/systemd/notify'):
            assert privileged.open_log(
                path, wanted, (), (name, bytes(16))) is None
        with pytest.raises(BlockingIOError):
            notify.recv(99)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = os.fork()
        if child == 0:
            with handover.Receiver() as receiver:
                name, secret = receiver.address
                theirs.sendall(name + secret)
                theirs.recv(1)
                os._exit(0 if receiver.take(1) is None else 1)
        message = ours.recv(99)
        assert privileged.open_log(
            path, wanted, (), (message[:6], message[6:])) is None
        ours.sendall(b'x')
        assert os.waitpid(child, 0)[1] == 0


def test_hard_links(daemon: Daemon, instances: pathlib.Path,
                    top: pathlib.Path) -> None:
    """A log never has two names: it might be a file of root's."""
    write(top / 'secret', b'secret')
    live = instances / 'guest/console.log'
    os.link(top / 'secret', live)
    for path in (str(live), f'{top}/logs/linked'):
        if 'logs' in path:
            os.link(top / 'secret', path)
        with pytest.raises(exception.LogNotRegular, match='hard links'):
            privileged.read_tail(path, 9, None)
        with unprivileged(), pytest.raises(exception.LogNotRegular):
            reader.read_tail(path, 9)
    live.unlink()
    os.link(top / 'secret', instances / 'guest/console.log.0')
    write(live, b'log')
    assert privileged.read_tail(str(live), 9, None)[0] == b'log'
    (top / 'secret').unlink()


@pytest.mark.skipif(not ROOT, reason='root alone can give files away')
def test_files_of_others(
        daemon: Daemon, instances: pathlib.Path) -> None:
    live = instances / 'guest/console.log'
    write(live, b'log')
    os.chown(live, 4711, 0)
    with pytest.raises(exception.LogNotRegular, match='user 4711'):
        privileged.read_tail(str(live), 9, None)


def test_no_call_where_the_process_may_read(
        daemon: Daemon, instances: pathlib.Path) -> None:
    write(instances / 'guest/console.log', b'1', 0o644)
    assert reader.read_tail(str(instances / 'guest/console.log'), 99).data
    assert daemon.calls == 0


def test_a_backup_is_refused(
        daemon: Daemon, instances: pathlib.Path) -> None:
    """One that isn't needed costs nothing; else the whole is read again."""
    write(instances / 'guest/console.log.0', b'1')
    write(instances / 'guest/console.log', b'2', 0o644)
    path = str(instances / 'guest/console.log')
    with unprivileged():
        assert reader.read_tail(path, 9).data == b'12'
        assert daemon.calls == 1
        assert reader.read_tail(path, 1).data == b'2'
        assert daemon.calls == 1


def test_errors_are_told_apart(
        daemon: Daemon, instances: pathlib.Path) -> None:
    path = instances / 'guest/console.log'
    with pytest.raises(exception.LogNotFound, match='no console log'):
        privileged.read_tail(str(path), 9, None)
    with pytest.raises(exception.LogNotFound, match='no directory'):
        privileged.read_tail(f'{instances}/other/console.log', 9, None)
    os.mkfifo(path)
    with pytest.raises(exception.LogNotRegular, match='not a regular file'):
        privileged.read_tail(str(path), 9, None)
    with pytest.raises(exception.LogRefused, match='instances_path'):
        privileged.read_tail('/etc/shadow', 9, None)
    with pytest.raises(exception.LogRefused, match='instances_path'):
        privileged.read_from('/etc/shadow', None, 9, None)


@pytest.mark.parametrize('path', [
    'console.log', '{0}/guest/../../x/console.log',
    '{0}/guest/../../instances-x/console.log', '{0}/guest/console.log/', '',
    '/', '{0}/guest/console.log\0', '{0}x/console.log', '{0}/guest/disk',
    '{0}/guest/disk.console.log', '{0}', '{0}/guest/..', '{0}/guest/.',
    '{0}/../guest/console.log', '{0}/guest/../../../../../etc/console.log'])
def test_paths_that_are_none(
        path: str, daemon: Daemon, instances: pathlib.Path) -> None:
    write(instances / 'guest/disk', b'disk')
    with pytest.raises(exception.LogRefused):
        privileged.read_tail(path.format(instances), 9, None)


@pytest.mark.parametrize('path', [
    '{0}//guest/console.log', '{0}/./guest/./console.log',
    '{0}/guest/../guest/console.log', '//{0}/guest//console.log',
    '{0}/../instances/guest/console.log', '{0}/no/../guest/console.log'])
def test_paths_that_say_the_same(
        path: str, daemon: Daemon, instances: pathlib.Path) -> None:
    write(instances / 'guest/console.log', b'log')
    assert privileged.read_tail(
        path.format(instances), 9, None)[0] == b'log'


@pytest.mark.parametrize('root', [
    '{0}/instances', '{0}//instances', '/{0}/instances/', '{0}/./instances/.',
    '{0}/logs/../instances', '{0}/big-disk/../instances//'])
def test_roots_that_say_the_same(
        root: str, top: pathlib.Path, instances: pathlib.Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """As the administrator has written instances_path, nova words paths."""
    write(instances / 'guest/console.log', b'log')
    root = root.format(top)
    monkeypatch.setattr(privileged, 'roots', lambda: (root,))
    monkeypatch.setattr(privileged.context, 'client_mode', False)
    for path in (f'{root}/guest/console.log',
                 f'{instances}/guest/console.log'):
        assert privileged.read_tail(path, 9, None)[0] == b'log'
    for path in (f'{root}/../guest/console.log', f'{root}/../../etc/passwd',
                 f'{root}/guest/../../big-disk/guest/console.log'):
        with pytest.raises(exception.LogRefused):
            privileged.read_tail(path, 9, None)


def test_links_below_the_root(
        daemon: Daemon, instances: pathlib.Path,
        tmp_path: pathlib.Path) -> None:
    (tmp_path / 'elsewhere').mkdir()
    write(tmp_path / 'elsewhere/console.log', b'secret')
    (instances / 'guest/linked').symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(exception.LogRefused, match='linked'):
        privileged.read_tail(f'{instances}/guest/linked/console.log', 9, None)
    (instances / 'guest/console.log').symlink_to(
        tmp_path / 'elsewhere/console.log')
    with pytest.raises(exception.LogNotRegular):
        privileged.read_tail(f'{instances}/guest/console.log', 9, None)


def test_log_directories(daemon: Daemon, top: pathlib.Path) -> None:
    write(top / 'logs/any-name', b'log')
    assert privileged.read_tail(
        f'{top}/logs/any-name', 9, None)[0] == b'log'


def test_largest_answer(daemon: Daemon, instances: pathlib.Path) -> None:
    """More than privsep can carry is cut, whatever was asked for."""
    path = instances / 'guest/console.log'
    path.touch()
    os.truncate(path, 1 << 30)
    data, _, exact, _ = privileged.read_tail(str(path), 1 << 40, None)
    assert len(data) == privileged.MAX_BYTES
    assert exact


def texts(paths: Iterator[pathlib.Path]
          ) -> Iterator[tuple[pathlib.Path, str]]:
    """Those of processes and threads that have not ended meanwhile."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            yield path, path.read_text(errors='replace')


def helper_status(top: pathlib.Path) -> dict[str, str]:
    """What the kernel says of the daemon and of each of its threads."""
    mark = f'{top}/nova.conf'
    [found] = [
        path.parent for path, line
        in texts(pathlib.Path('/proc').glob('[0-9]*/cmdline'))
        if mark in line and 'helper_main' in line]
    threads = [dict(
        line.split(':\t') for line in text.splitlines() if ':\t' in line)
        for _, text in texts(found.glob('task/*/status'))]
    shared = {key: value for key, value in threads[0].items()
              if all(thread[key] == value for thread in threads)}
    if ROOT:   # whose it is says whether it may be traced or dumped
        shared['dumpable'] = str(
            int(privileged_uid(found) == shared['Uid'].split()[1]))
    return shared


def privileged_uid(process: pathlib.Path) -> str:
    return str((process / 'environ').stat().st_uid)


def test_capabilities(daemon: Daemon, top: pathlib.Path,
                      instances: pathlib.Path) -> None:
    """It can do nothing but read, and can come by nothing else."""
    with pytest.raises(exception.LogNotFound):   # its threads are there
        privileged.read_tail(f'{instances}/guest/console.log', 9, None)
    status = helper_status(top)
    only, none = f'{1 << 2:016x}', f'{0:016x}'
    assert (status['CapEff'], status['CapPrm']) == (only, only)
    assert (status['CapInh'], status['CapBnd'], status['CapAmb']) == (
        none, none, none)
    assert status['NoNewPrivs'] == '1'


def test_generations(daemon: Daemon, instances: pathlib.Path) -> None:
    write(instances / 'guest/console.g1.history', b'old')
    path = str(instances / 'guest/console.g1.log')
    chain.begin(path)
    with unprivileged():
        assert reader.read_tail(path, 9).data == b'old'


def test_no_daemon(
        instances: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privileged.context, 'client_mode', True)
    monkeypatch.setattr(privileged.context, 'channel', None)
    write(instances / 'guest/console.log', b'log')
    for command in ('false', '/nonexistent/helper'):
        cfg.CONF.set_override(
            'helper_command', command, group='virtlogd_privileged')
        try:
            with unprivileged(), pytest.raises(
                    exception.LogRefused, match='helper_command'):
                reader.read_tail(str(instances / 'guest/console.log'), 9)
        finally:
            cfg.CONF.clear_override(
                'helper_command', group='virtlogd_privileged')


# In this process, where all of it is seen

@pytest.mark.parametrize(('path', 'reason'), [
    ('console.log', 'absolute path of a file'),
    ('/r/guest\0/console.log', 'absolute path of a file'),
    ('/r/guest/', 'absolute path of a file'),
    ('/r/guest/.', 'absolute path of a file'),
    ('/r/guest/..', 'absolute path of a file'),
    ('/etc/console.log', r'\(/l, /m\)'),
    ('/r/guest/disk', r'\(/l, /m\)')])
def test_why_a_path_is_none(path: str, reason: str,
                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privileged, 'roots', lambda: ('/r', '/l', '/m'))
    with pytest.raises(exception.LogRefused, match=reason):
        privileged._open(path)


def test_where_there_is_no_other_directory(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privileged, 'roots', lambda: ('/r',))
    with pytest.raises(exception.LogRefused, match=r'\(none\)'):
        privileged._open('/etc/console.log')


@pytest.mark.parametrize(('nova', 'instances'), [
    (None, '/var/lib/nova/instances'),
    (ModuleSpec('nova', None), '/var/lib/nova/instances'),
    (ModuleSpec('nova', None, origin='/site/nova/__init__.py'),
     '/site/instances')])
def test_the_instances_path_where_no_file_says_it(
        nova: ModuleSpec | None, instances: str, tmp_path: pathlib.Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """As nova has it, which is beside its code where it was not packaged."""
    (tmp_path / 'nova.conf.d').mkdir()
    (tmp_path / 'nova.conf').touch()
    (tmp_path / 'nova.conf.d/logs.conf').write_text(
        '[virtlogd]\nlog_directories = /logs\n')
    options = {'config_file': [str(tmp_path / 'nova.conf')],
               'config_dir': [str(tmp_path / 'nova.conf.d')]}
    monkeypatch.setattr(privileged_process, 'option', options.get)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: nova)
    assert privileged._roots_of_files.__wrapped__() == (instances, '/logs')


def test_whose_files_are_given_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root's, the caller's, and those of the user that QEMU runs as here."""
    monkeypatch.setattr(privileged_process, 'caller', lambda: (1, 4711))
    users = {'qemu': pwd.struct_passwd(('qemu', 'x', 107, 107, '', '/', ''))}
    monkeypatch.setattr(pwd, 'getpwnam', users.__getitem__)
    assert privileged._owners.__wrapped__() == {0, 4711, 107}


def test_what_takes_long_does_not_hang_yet(
        monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, 'monotonic', lambda: now)
    monkeypatch.setattr(privileged, '_open', lambda path: (
        contextlib.nullcontext(), 'console.log'))
    with privileged._opened('/instances/guest/console.log'):
        now += privileged.HANGS - 0.5
        with privileged._opened('/instances/guest/serial1.log'):
            now += 0.5
        with pytest.raises(exception.LogError, match='does not answer'), \
                privileged._opened('/instances/guest/serial1.log'):
            pass


def test_a_directory_that_hangs_takes_one_call(
        monkeypatch: pytest.MonkeyPatch) -> None:
    go, begun = threading.Event(), threading.Event()

    def hang(path: str) -> tuple[contextlib.nullcontext[None], str]:
        if '/hangs/' in path:
            begun.set()
            assert go.wait(60)
        return contextlib.nullcontext(), 'console.log'

    def call(name: str) -> None:
        with privileged._opened(f'/instances/{name}'):
            pass

    monkeypatch.setattr(privileged, '_open', hang)
    thread = threading.Thread(target=call, args=('hangs/console.log',))
    thread.start()
    assert begun.wait(60)
    monkeypatch.setattr(privileged, 'HANGS', 0.0)
    with pytest.raises(exception.LogError, match='does not answer'):
        call('hangs/serial1.log')
    call('other/console.log')
    go.set()
    thread.join(60)
    call('hangs/console.log')
    assert privileged._calls == {}
