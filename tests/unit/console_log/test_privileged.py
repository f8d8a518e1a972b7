# SPDX-License-Identifier: Apache-2.0
"""Reading through a real privsep daemon, of files that this process can't."""

import contextlib
import os
import pathlib
import shlex
import shutil
import sys
from collections.abc import Iterator

import pytest
from oslo_config import cfg

from virtlogd_driver import exception
from virtlogd_driver.console_log import (
    chain,
    log,
    mailbox,
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
def top(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """What nova's configuration names; instances_path itself is a link."""
    top = tmp_path_factory.mktemp('nova')
    (top / 'big-disk').mkdir()
    (top / 'instances').symlink_to(top / 'big-disk')
    (top / 'logs').mkdir()
    (top / 'nova.conf').write_text(
        f'[DEFAULT]\nstate_path = {top}\n'
        f'[virtlogd]\nlog_directories = {top}/logs\n')
    return top


@pytest.fixture(scope='module')
def helper(top: pathlib.Path) -> Iterator[None]:
    """privsep-helper with nova's configuration, as root or as a user."""
    # A user is root in a user namespace, over the user's own files.
    command = [] if ROOT else ['unshare', '--map-root-user']
    command += [
        'env', f'PYTHONPATH={os.pathsep.join(sys.path)}',
        sys.executable, '-W', 'ignore', '-c',
        'from oslo_privsep.daemon import helper_main; helper_main()',
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
    for number in range(5):
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
        assert daemon.calls == 2
        assert reader.read_from(path, None, 3).data == b'432'
        assert reader.read_tail(path, 3) == log.LogRead(
            b'0\xff\0', read.position, True, 0)


def test_large_data_comes_by_mailbox(
        daemon: Daemon, instances: pathlib.Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(3 * mailbox.WORTHWHILE)
    path = str(instances / 'guest/console.log')
    write(instances / 'guest/console.log', data)
    with mailbox.Mailbox() as box:
        assert privileged.read_tail(
            path, len(data), None, box.address)[0] is None
        assert box.take() == data
        assert privileged.read_from(
            path, None, len(data), None, box.address)[0] is None
        assert box.take() == data
    with unprivileged():
        daemon.calls = 0
        assert reader.read_tail(path, len(data)).data == data
        assert reader.read_from(path, None, len(data)).data == data
        assert daemon.calls == 2
        # What a security module keeps from being passed comes otherwise.
        monkeypatch.setattr(mailbox.Mailbox, 'take', lambda box: None)
        assert reader.read_tail(path, len(data)).data == data
        assert reader.read_from(path, None, len(data)).data == data
        # And so it does where there is no way to the mailbox.
        monkeypatch.setattr(
            mailbox.Mailbox, 'address', (b'\0nowhere', b'secret'))
        daemon.calls = 0
        assert reader.read_tail(path, len(data)).data == data
        assert daemon.calls == 1


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
    'console.log', '{0}/guest/../../x/console.log', '{0}/guest/./console.log',
    '{0}//guest/console.log', '{0}/guest/console.log/', '', '/',
    '{0}/guest/console.log\0', '{0}x/console.log', '{0}/guest/disk',
    '{0}/guest/disk.console.log', '{0}'])
def test_paths_that_are_none(
        path: str, daemon: Daemon, instances: pathlib.Path) -> None:
    write(instances / 'guest/disk', b'disk')
    with pytest.raises(exception.LogRefused):
        privileged.read_tail(path.format(instances), 9, None)


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
    data, _, exact, older = privileged.read_tail(str(path), 1 << 40, None)
    assert data is not None
    assert len(data) == privileged.MAX_BYTES
    assert (exact, older) == (True, (1 << 30) - privileged.MAX_BYTES)


def test_capabilities(daemon: Daemon, top: pathlib.Path) -> None:
    """It can do nothing but read."""
    children = pathlib.Path('/proc').glob('[0-9]*/cmdline')
    mark = f'{top}/nova.conf'.encode()
    [found] = [
        path.parent for path in children
        if mark in path.read_bytes() and b'helper_main' in path.read_bytes()]
    status = dict(
        line.split(':\t') for line
        in (found / 'status').read_text().splitlines() if ':\t' in line)
    only = f'{1 << 2:016x}'
    assert (status['CapEff'], status['CapPrm']) == (only, only)


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
