# SPDX-License-Identifier: Apache-2.0
"""The privileged side refuses what is wrong, whatever its caller says."""

import contextlib
import os
import pathlib
import shutil
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator

import pytest
from oslo_config import cfg
from oslo_privsep import capabilities

from virtlogd_driver import (
    conf,
    exception,
    peer,
    privileged_process,
    safe_path,
)
from virtlogd_driver.virtlogd import privileged, rpc, viewer

DOMAIN = str(uuid.uuid4())
LOG = '/instances/a/console.log'
STATUS = f"""\
<!-- auto-generated -->
<domstatus state='running' reason='booted' pid='190'>
  <chardevStdioLogd/>
  <domain type='qemu' id='1'>
    <name>instance-1</name>
    <uuid>{DOMAIN}</uuid>
    <devices>
      <serial type='pty'>
        <log file='{LOG}' append='on'/>
      </serial>
    </devices>
  </domain>
</domstatus>
"""


@pytest.fixture(autouse=True)
def _in_process() -> Iterator[None]:
    contexts = (privileged.virtlogd_context, privileged.viewer_context)
    for context in contexts:
        context.set_client_mode(False)
    yield
    for context in contexts:
        context.set_client_mode(True)


@pytest.fixture
def bare_socket(tmp_path: pathlib.Path) -> Iterator[str]:
    """The configured socket; libvirt keeps nothing beside it."""
    conf.register_opts(cfg.CONF)
    path = str(tmp_path / 'virtlogd-sock')
    cfg.CONF.set_override('virtlogd_socket', path, group='virtlogd')
    yield path
    cfg.CONF.clear_override('virtlogd_socket', group='virtlogd')


@pytest.fixture
def socket_path(tmp_path: pathlib.Path, bare_socket: str) -> str:
    (tmp_path / 'qemu').mkdir()
    (tmp_path / 'qemu' / 'instance-1.xml').write_text(STATUS)
    return bare_socket


def test_contexts_have_no_more_than_they_need() -> None:
    # A process of its own: other tests clear defaults of the configuration.
    shown = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', (
            'from virtlogd_driver.virtlogd import privileged as p;'
            'print(p.virtlogd_context.conf.capabilities,'
            ' p.viewer_context.conf.capabilities)')],
        capture_output=True, text=True, check=True)
    assert shown.stdout == f'[] [{capabilities.CAP_NET_ADMIN:d}]\n'


@pytest.mark.parametrize(('domain', 'name', 'log'), [
    (DOMAIN, 'instance-1', '/etc/passwd'),
    (DOMAIN, 'instance-1', ''),
    (str(uuid.uuid4()), 'instance-1', LOG),
    (DOMAIN, 'instance-2', LOG),
    (DOMAIN, '../qemu/instance-1', LOG),
    (DOMAIN, '..', LOG),
    (DOMAIN, '', LOG),
])
def test_open_log_refuses_what_is_no_log_of_a_running_guest(
        socket_path: str, domain: str, name: str, log: str) -> None:
    with pytest.raises(exception.ReattachFailed, match='Guest'):
        privileged.open_log(socket_path, domain, name, log, 'receiver', 1)


def test_a_path_that_refers_to_one_of_nova(
        tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The helper, which does not import nova, takes it as nova does."""
    file = tmp_path / 'nova.conf'
    file.write_text('[DEFAULT]\nstate_path = /state\n[virtlogd]\n'
                    'virtlogd_socket = $state_path/virtlogd-sock\n')
    own = cfg.ConfigOpts()
    own([], default_config_files=[str(file)])
    monkeypatch.setattr(cfg, 'CONF', own)
    monkeypatch.setattr(privileged_process, 'option', lambda name: 'context')
    path = '/state/virtlogd-sock'
    privileged._check_own('virtlogd_socket', path)
    state, reason, _ = privileged.probe(path, [], 1)
    assert (state, path in reason) == (privileged.DOWN, True)


def test_another_socket_than_the_configured_one_is_refused(
        socket_path: str, tmp_path: pathlib.Path) -> None:
    """Though it is the same: what is beside it is the caller's own."""
    other = tmp_path / 'own'
    (other / 'qemu').mkdir(parents=True)
    (other / 'virtlogd-sock').symlink_to(socket_path)
    (other / 'qemu' / 'instance-1.xml').write_text(
        STATUS.replace(LOG, '/etc/cron.d/evil'))
    path = str(other / 'virtlogd-sock')
    with pytest.raises(exception.VirtlogdError,
                       match=r'\[virtlogd\] virtlogd_socket'):
        privileged.open_log(path, DOMAIN, 'instance-1', '/etc/cron.d/evil',
                            'receiver', 1)
    state, reason, answers = privileged.probe(path, [('instance-1', LOG)], 1)
    assert (state, answers) == (privileged.REFUSED, [])
    assert '[virtlogd] virtlogd_socket' in reason


def test_open_log_refuses_a_broken_status_file(
        socket_path: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / 'qemu' / 'instance-1.xml').write_text(STATUS[:200])
    with pytest.raises(exception.ReattachFailed, match='cannot be read'):
        privileged.open_log(socket_path, DOMAIN, 'instance-1', LOG, 'r', 1)


class Caller:
    """What nova-compute has: a socket, on which a pipe may come."""

    def __init__(self, listener: socket.socket, name: str) -> None:
        self._listener = listener
        self.receiver = name

    def pipe(self) -> int | None:
        channel, _ = self._listener.accept()
        with channel:
            _, fds, _, _ = socket.recv_fds(channel, 1, 1)
        return fds[0] if fds else None


@pytest.fixture
def caller() -> Iterator[Caller]:
    name = f'{privileged.RECEIVER}{uuid.uuid4()}'
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f'\0{name}')
        listener.listen()
        yield Caller(listener, name)


@pytest.fixture
def log(tmp_path: pathlib.Path, socket_path: str) -> pathlib.Path:
    """The log of the guest, which is not there yet; its directory is."""
    path = tmp_path / 'instances' / 'a' / 'console.log'
    path.parent.mkdir(parents=True)
    _has_log(tmp_path, str(path))
    return path


def _has_log(tmp_path: pathlib.Path, log: str) -> None:
    (tmp_path / 'qemu' / 'instance-1.xml').write_text(
        STATUS.replace(LOG, log))


@contextlib.contextmanager
def opening(path: str, before: Callable[[], object] = lambda: None
            ) -> Iterator[list[str]]:
    """A virtlogd that opens one log as a real one does, and the paths."""
    asked: list[str] = []

    def text(call: bytes, at: int) -> tuple[str, int]:
        (length,) = struct.unpack_from('>I', call, at)
        return call[at + 4:at + 4 + length].decode(), (
            at + 4 + length + -length % 4)

    def serve() -> None:
        with contextlib.suppress(OSError):
            client, _ = listener.accept()
            with client:
                call = client.recv(65536)
                _, at = text(call, 28)
                _, at = text(call, at + 16)
                log, _ = text(call, at)
                asked.append(log)
                before()
                file = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY
                               | os.O_NONBLOCK, 0o600)
                status = os.fstat(file)
                read_end, write_end = os.pipe()
                client.sendall(struct.pack(
                    '>IIIiiIiIQQ', 48, 0x87539319, 1, 1, 5, 1, 0, 1,
                    status.st_ino, status.st_size))
                socket.send_fds(client, [b'\0'], [write_end])
                os.close(write_end)
                with open(read_end, 'rb') as pipe, open(file, 'ab') as out:
                    shutil.copyfileobj(pipe, out)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield asked
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)
    assert not thread.is_alive()


def open_log(socket_path: str, log: object, caller: Caller) -> None:
    privileged.open_log(
        socket_path, DOMAIN, 'instance-1', str(log), caller.receiver, 5)


@pytest.mark.parametrize('there', [False, True])
def test_open_log_opens_a_log(socket_path: str, log: pathlib.Path,
                              caller: Caller, there: bool) -> None:
    if there:
        log.write_bytes(b'before, ')
    with opening(socket_path):
        open_log(socket_path, log, caller)
        pipe = caller.pipe()
        assert pipe is not None
        os.write(pipe, b'after')
        os.close(pipe)
    assert log.read_bytes() == b'before, ' * there + b'after'


def _link(log: pathlib.Path, secret: pathlib.Path) -> None:
    log.symlink_to(secret)


def _dangling(log: pathlib.Path, secret: pathlib.Path) -> None:
    log.symlink_to(secret.with_name('none'))


def _hard_link(log: pathlib.Path, secret: pathlib.Path) -> None:
    log.hardlink_to(secret)


def _directory_link(log: pathlib.Path, secret: pathlib.Path) -> None:
    elsewhere = secret.parent / 'elsewhere'
    elsewhere.mkdir()
    log.parent.rmdir()
    log.parent.symlink_to(elsewhere)


def _fifo(log: pathlib.Path, secret: pathlib.Path) -> None:
    os.mkfifo(log)


def _directory(log: pathlib.Path, secret: pathlib.Path) -> None:
    log.mkdir()


def _socket(log: pathlib.Path, secret: pathlib.Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(log))


def _device(log: pathlib.Path, secret: pathlib.Path) -> None:
    try:
        os.mknod(log, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip('no devices can be made here')


def _strangers(log: pathlib.Path, secret: pathlib.Path) -> None:
    if os.geteuid():
        pytest.skip('a file of another user is made by root')
    log.touch()
    os.chown(log, 65534, -1)


TRAPS = [_link, _dangling, _hard_link, _directory_link, _fifo, _directory,
         _socket, _device, _strangers]


@pytest.fixture
def secret(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / 'secret'
    path.write_bytes(b'of root')
    return path


def _refused(socket_path: str, log: object, caller: Caller) -> str:
    with pytest.raises(exception.ReattachFailed) as caught:
        open_log(socket_path, log, caller)
    return str(caught.value)


@pytest.mark.parametrize('trap', TRAPS)
def test_open_log_refuses_what_the_owner_of_the_directory_has_planted(
        socket_path: str, log: pathlib.Path, secret: pathlib.Path,
        caller: Caller, trap: Callable[..., None]) -> None:
    trap(log, secret)
    with opening(socket_path) as asked:
        assert str(log) in _refused(socket_path, log, caller)
    assert asked == []
    assert secret.read_bytes() == b'of root'
    assert not secret.with_name('none').exists()


@pytest.mark.parametrize('trap', [_link, _dangling, _hard_link,
                                  _directory_link, _strangers])
@pytest.mark.parametrize('there', [False, True])
def test_open_log_finds_what_was_exchanged_while_virtlogd_opened_it(
        socket_path: str, log: pathlib.Path, secret: pathlib.Path,
        caller: Caller, trap: Callable[..., None], there: bool) -> None:
    if there:
        log.touch()

    def exchange() -> None:
        log.unlink(missing_ok=True)
        trap(log, secret)

    with opening(socket_path, exchange) as asked:
        assert str(log) in _refused(socket_path, log, caller)
    assert asked == [str(log)]
    # The pipe is closed, and nobody else has it.
    assert caller.pipe() is None
    assert secret.read_bytes() == b'of root'


def test_open_log_finds_another_file_at_the_end(
        socket_path: str, log: pathlib.Path, caller: Caller) -> None:
    """A link was there, and is gone again: the inode tells."""
    log.touch()
    aside = log.with_name('aside')

    class Swapped:
        def __init__(self) -> None:
            self.calls = 0

        def __call__(self, path: str) -> os.stat_result | None:
            self.calls += 1
            if self.calls == 2:
                aside.touch()
                os.replace(aside, path)
            return check(path)

    check = safe_path.check_log
    with (pytest.MonkeyPatch.context() as patch, opening(socket_path)):
        patch.setattr(safe_path, 'check_log', Swapped())
        assert 'exchanged' in _refused(socket_path, log, caller)


@pytest.mark.parametrize('spelling', ['{}//console.log', '{}/./console.log',
                                      '{}/../a/console.log'])
def test_open_log_takes_other_spellings(
        socket_path: str, log: pathlib.Path, caller: Caller,
        tmp_path: pathlib.Path, spelling: str) -> None:
    spelled = spelling.format(log.parent)
    _has_log(tmp_path, spelled)
    with opening(socket_path) as asked:
        open_log(socket_path, spelled, caller)
        pipe = caller.pipe()
        assert pipe is not None
        os.close(pipe)
    assert asked == [spelled]


def test_open_log_sends_a_pipe_to_its_own_callers_alone(
        socket_path: str, log: pathlib.Path, caller: Caller) -> None:
    with socket.socket(socket.AF_UNIX) as other, opening(socket_path):
        caller.receiver = f'another-service-{uuid.uuid4()}'
        other.bind(f'\0{caller.receiver}')
        other.listen()
        assert 'virtlogd-driver-' in _refused(socket_path, log, caller)
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.accept()


@pytest.mark.parametrize(('listens', 'asks', 'sent'), [
    (0, 4711, True), (4711, 4711, True), (65534, 4711, False),
    (65534, 0, False), (4711, 0, False)])
def test_open_log_sends_no_pipe_to_another_user(
        socket_path: str, log: pathlib.Path, caller: Caller, listens: int,
        asks: int, sent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that has given up leaves the name of its socket to anybody."""
    monkeypatch.setattr(peer, 'credentials', lambda channel: (1, listens))
    monkeypatch.setattr(privileged_process, 'caller', lambda: (2, asks))
    with opening(socket_path) as asked:
        if sent:
            open_log(socket_path, log, caller)
            pipe = caller.pipe()
            assert pipe is not None
            os.close(pipe)
        else:
            said = _refused(socket_path, log, caller)
            assert f'user {listens} listens' in said
            assert asked == []


def test_open_log_says_that_virtlogd_is_down(
        socket_path: str, log: pathlib.Path, caller: Caller) -> None:
    with pytest.raises(exception.VirtlogdDown):
        open_log(socket_path, log, caller)


@pytest.mark.parametrize('timeout', [float('nan'), -1.0, 0.0])
def test_a_time_that_is_none_is_short(socket_path: str,
                                      timeout: float) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(socket_path)
        listener.listen()
        state, _, _ = privileged.probe(socket_path, [], timeout)
    assert state == privileged.HUNG


def test_a_status_file_is_read_as_far_as_one_can_be_long(
        socket_path: str, log: pathlib.Path, caller: Caller,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privileged, '_MOST_STATUS', 100)
    assert 'more than 100 bytes' in _refused(socket_path, log, caller)
    _, _, answers = privileged.probe(
        socket_path, [('instance-1', str(log))], 1)
    assert answers == [privileged.CLOSED]


def test_probe_of_a_daemon_that_is_down(
        socket_path: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / 'qemu' / 'instance-2.xml').write_text(
        STATUS.replace('<chardevStdioLogd/>', ''))
    (tmp_path / 'qemu' / 'instance-3.xml').write_text(
        STATUS.replace('booted', 'starting up'))
    state, reason, answers = privileged.probe(
        socket_path, [('instance-1', LOG), ('instance-2', LOG),
                      ('instance-3', LOG), ('no-such', LOG),
                      ('../etc', LOG), ('a\0b', LOG)], 1)
    assert state == privileged.DOWN
    assert 'systemctl start' in reason
    assert answers == [privileged.CLOSED, privileged.FILE,
                       privileged.STARTING, privileged.STARTING,
                       privileged.CLOSED, privileged.CLOSED]


def test_probe_does_not_heed_what_the_tenant_wrote(
        socket_path: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / 'qemu' / 'instance-1.xml').write_text(STATUS.replace(
        '<uuid>', "<metadata><name>a reason='starting up' b</name>"
        '</metadata><uuid>'))
    _, _, answers = privileged.probe(socket_path, [('instance-1', LOG)], 1)
    assert answers == [privileged.CLOSED]


def test_probe_where_libvirt_keeps_no_status_files(bare_socket: str) -> None:
    _, _, answers = privileged.probe(bare_socket, [('instance-1', LOG)], 1)
    assert answers == [privileged.CLOSED]


@contextlib.contextmanager
def closing(path: str, connections: int) -> Iterator[list[None]]:
    """Closes so many connections when they ask; then it is gone itself."""
    closed: list[None] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while len(closed) < connections:
                client, _ = listener.accept()
                with client:
                    client.recv(4)
                closed.append(None)
        listener.close()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield closed
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def test_probe_connects_again_where_its_connection_is_closed(
        socket_path: str) -> None:
    """As at virtlogd's re-exec; twice, as at two of them."""
    with closing(socket_path, 2) as closed:
        state, reason, _ = privileged.probe(socket_path, [], 60)
    assert len(closed) == 2
    assert state == privileged.DOWN
    assert 'does not listen' in reason, 'the third time'


def test_probe_asks_again_for_a_reply_that_is_lost(
        socket_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As at virtlogd's re-exec: its connections stay, its replies do not."""
    position = struct.pack('>IIIiiIiQQ', 44, 0x87539319, 1, 2, 1, 1, 0, 5, 6)
    real = privileged._probe_once
    given: list[float] = []

    def once(path: str, logs: list[tuple[str, str]],
             timeout: float) -> list[str]:
        given.append(timeout)
        return real(path, logs, 60 if given[1:] else 0.1)

    def serve() -> None:
        lost, _ = listener.accept()
        again, _ = listener.accept()
        with lost, again:
            while again.recv(1024):
                again.sendall(position)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(socket_path)
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            monkeypatch.setattr(privileged, '_probe_once', once)
            assert privileged.probe(socket_path, [], 60) == (
                privileged.UP, '', [])
        finally:
            thread.join(10)
    assert given[0] == 30, 'the rest is for another try'


def test_probe_gives_up_in_time(
        socket_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[None] = []

    def close(*_: object) -> None:
        closed.append(None)
        raise rpc._closed(socket_path, 'end of file')

    monkeypatch.setattr(privileged, '_probe_once', close)
    start = time.monotonic()
    state, reason, _ = privileged.probe(socket_path, [], 0.3)
    assert time.monotonic() - start >= 0.3
    assert len(closed) < 1000
    assert state == privileged.DOWN
    assert 'closed the connection' in reason


def test_errors_of_the_privileged_side_can_cross_to_the_other() -> None:
    """privsep makes them anew out of their arguments."""
    for error in (rpc._closed('/sock', 'why'), rpc.hung('/sock', 1)):
        assert str(type(error)(*error.args)) == str(error)


# Viewers

@pytest.fixture
def connection(tmp_path: pathlib.Path, socket_path: str) -> Iterator[
        tuple[socket.socket, socket.socket]]:
    """A guest's side, as libvirt's status file has it, and a viewer's."""
    with (socket.create_server(('127.0.0.1', 0)) as listener,
          socket.create_connection(listener.getsockname()) as peer):
        (tmp_path / 'qemu' / 'instance-1.xml').write_text(STATUS.replace(
            "<serial type='pty'>", "<serial type='tcp'><source mode='bind' "
            f"host='127.0.0.1' service='{listener.getsockname()[1]}'/>"))
        guest, _ = listener.accept()
        with guest:
            yield guest, peer


def fill(guest: socket.socket) -> bytes:
    """Stop a guest's output; the kernel's name of its socket."""
    guest.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            guest.send(bytes(65536))
    deadline = time.monotonic() + 30
    while True:
        (found,) = viewer.viewers([guest.getsockname()])
        if found.stuck(0.1):
            break
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found.socket_id


def is_connected(peer: socket.socket) -> bool:
    try:
        return bool(peer.recv(1))
    except ConnectionError:
        return False


def test_disconnect_leaves_a_connection_that_is_not_stuck(
        connection: tuple[socket.socket, socket.socket],
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer, 'STUCK_AFTER', 0.0)
    guest, peer = connection
    (found,) = viewer.viewers([guest.getsockname()])
    assert not privileged.disconnect(found.socket_id, 0.0)
    guest.send(b'still here')
    assert is_connected(peer)


def test_disconnect_has_a_shortest_time(
        connection: tuple[socket.socket, socket.socket]) -> None:
    """Whatever the caller says: it could end every connection."""
    guest, peer = connection
    assert not privileged.disconnect(fill(guest), 0.0)
    assert is_connected(peer)


def test_disconnect_leaves_connections_that_are_no_guests(
        connection: tuple[socket.socket, socket.socket],
        tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer, 'STUCK_AFTER', 0.0)
    guest, peer = connection
    (tmp_path / 'qemu' / 'instance-1.xml').write_text(STATUS)
    assert not privileged.disconnect(fill(guest), 0.0)
    assert is_connected(peer)


def test_disconnect_goes_by_all_status_files(
        connection: tuple[socket.socket, socket.socket],
        tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer, 'STUCK_AFTER', 0.0)
    guest, _ = connection
    for name, text in (('broken', STATUS[:200]), ('other', STATUS),
                       ('named', STATUS.replace(
                           "'pty'>", "'tcp'><source mode='bind'/>"))):
        (tmp_path / 'qemu' / f'{name}.xml').write_text(text)
    ended: list[bytes] = []
    # The kernel may not be able to.
    monkeypatch.setattr(viewer, 'disconnect', ended.append)
    name = fill(guest)
    assert privileged.disconnect(name, 0.0)
    assert ended == [name]


@pytest.mark.parametrize('other', [
    "<serial type='unix'><source mode='bind' path='/run/a'/></serial>",
    "<serial type='tcp'><source mode='bind' host='::1' service='no-such'/>"
    '</serial>'])
def test_disconnect_goes_by_all_ports_of_a_guest(
        connection: tuple[socket.socket, socket.socket],
        tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch,
        other: str) -> None:
    monkeypatch.setattr(viewer, 'STUCK_AFTER', 0.0)
    guest, _ = connection
    status = tmp_path / 'qemu' / 'instance-1.xml'
    status.write_text(status.read_text().replace(
        '<devices>', f'<devices>{other}'))
    monkeypatch.setattr(viewer, 'disconnect', lambda _: None)
    assert privileged.disconnect(fill(guest), 0.0)
