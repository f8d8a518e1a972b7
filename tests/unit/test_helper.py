# SPDX-License-Identifier: Apache-2.0
"""A privileged helper is started, and it is said if it does not start."""

import contextlib
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from oslo_config import cfg
from oslo_privsep import capabilities, daemon, priv_context

from tests.lab.wait import until
from virtlogd_driver import helper

SECTION = 'virtlogd_test_helper'
context = helper.Context(
    'tests', cfg_section=SECTION, pypath=f'{__name__}.context',
    capabilities=[])


@context.entrypoint
def process(ballast: bytes = b'') -> int:
    """The helper's process."""
    return os.getpid()


@context.entrypoint
def nap(seconds: float) -> None:
    time.sleep(seconds)


@context.entrypoint
def time_out() -> None:
    raise TimeoutError('of its own')


@context.entrypoint
def status() -> str:
    return Path('/proc/self/status').read_text()


REFUSED = 'sudo: a password is required'


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Iterator[helper.Context]:
    """A context that has not been started yet."""
    # Words are heard however late their thread is.
    monkeypatch.setattr(helper, '_READ', 60.0)
    context._failed = False
    context.set_client_mode(True)
    yield context
    context.stop()
    context._start = None
    cfg.CONF.clear_override('helper_command', group=SECTION)


def _command(*command: str) -> None:
    cfg.CONF.set_override(
        'helper_command', shlex.join(command), group=SECTION)


def _refuse(words: str = REFUSED) -> None:
    _command('sh', '-c', f'echo "{words}" >&2; exit 1', 'sh')


def _allow() -> None:
    _command('env', f'PYTHONPATH={os.pathsep.join(sys.path)}',
             sys.executable, '-c',
             'import sys; print("a warning", file=sys.stderr); '
             'from oslo_privsep.daemon import helper_main; helper_main()')


def _said(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records
             if record.name == daemon.LOG.logger.name]
    caplog.clear()
    return found


def test_the_words_of_what_refuses_are_in_the_error(
        starts: helper.Context) -> None:
    _refuse()
    with pytest.raises(daemon.FailedToDropPrivileges, match=REFUSED):
        starts.start()
    _refuse('Unauthorized command: no filter matched')
    with pytest.raises(daemon.FailedToDropPrivileges,
                       match='no filter matched') as raised:
        starts.start()
    assert REFUSED not in str(raised.value)


def test_a_refusal_without_words(starts: helper.Context) -> None:
    _command('false')
    with pytest.raises(daemon.FailedToDropPrivileges,
                       match=r'exited non-zero \(1\)$'):
        starts.start()


def test_what_repeats_is_logged_once(
        starts: helper.Context, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    _refuse()
    for attempt in range(3):
        with pytest.raises(daemon.FailedToDropPrivileges, match=REFUSED):
            starts.start()
        said = _said(caplog)
        assert bool(said) == (attempt == 0)
        assert not any('privsep log' in line for line in said)
    _command('/none/sudo')
    with pytest.raises(FileNotFoundError, match='/none/sudo'):
        starts.start()
    assert _said(caplog) == []
    _allow()
    starts.start()
    _said(caplog)
    starts.stop()
    # It was well meanwhile: this is news.
    _refuse()
    with pytest.raises(daemon.FailedToDropPrivileges):
        starts.start()
    assert any('exited non-zero' in line for line in _said(caplog))


def _default(monkeypatch: pytest.MonkeyPatch, user: int) -> list[str]:
    monkeypatch.setattr(os, 'geteuid', lambda: user)
    monkeypatch.setattr(
        priv_context, '_HELPER_COMMAND_PREFIX',
        ['sudo', 'nova-rootwrap', '/etc/nova/rootwrap.conf'])
    return context.helper_command('/socket')


def test_a_user_goes_through_what_the_service_has_given(
        monkeypatch: pytest.MonkeyPatch) -> None:
    assert _default(monkeypatch, 1000)[:4] == [
        'sudo', 'nova-rootwrap', '/etc/nova/rootwrap.conf', 'privsep-helper']


def test_root_goes_through_nothing(
        monkeypatch: pytest.MonkeyPatch, starts: helper.Context) -> None:
    """sudo may be missing, and has another PATH than a virtual environment."""
    program, *arguments = _default(monkeypatch, 0)
    assert Path(program).name == 'privsep-helper'
    assert Path(program).parent == Path(sys.executable).parent
    assert arguments[-4:] == ['--privsep_context', f'{__name__}.context',
                              '--privsep_sock_path', '/socket']
    _command('sudo', 'privsep-helper', '--config-file', '/x')
    assert _default(monkeypatch, 0)[:2] == ['sudo', 'privsep-helper']


# Helpers that do not answer

@pytest.fixture
def hasty(starts: helper.Context, monkeypatch: pytest.MonkeyPatch
          ) -> Iterator[helper.Context]:
    """With bounds that a test can wait for."""
    monkeypatch.setattr(helper, 'PING', 0.3)
    monkeypatch.setattr(starts, 'timeout', 0.3)
    monkeypatch.setattr(starts, 'left', [])
    _allow()
    stopped: list[int] = []
    _STOPPED.append(stopped)
    # It takes its time where much else runs.
    starts.start()
    yield starts
    for pid in stopped:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    for pid in stopped:
        until(lambda pid=pid: _has_ended(pid), 'a helper that was left ends')
    _STOPPED.remove(stopped)


_STOPPED: list[list[int]] = []


def _stop_helper() -> int:
    pid = process(_wrap_timeout=helper.ANSWER)
    os.kill(pid, signal.SIGSTOP)
    _STOPPED[-1].append(pid)
    return int(pid)


def _has_ended(pid: int) -> bool:
    try:
        stat = Path(f'/proc/{pid}/stat').read_text()
    except FileNotFoundError:
        return True
    return stat.rpartition(')')[2].split()[0] == 'Z'


def test_a_helper_that_is_stopped_is_replaced(hasty: helper.Context) -> None:
    stopped = _stop_helper()
    with pytest.raises(TimeoutError, match=rf'\[{SECTION}\].*kill -CONT'):
        process()
    assert process(_wrap_timeout=helper.ANSWER) not in (stopped, os.getpid())


def test_a_call_that_is_not_taken_is_bounded(hasty: helper.Context) -> None:
    """The socket is full: oslo.privsep would wait while it is locked."""
    _stop_helper()
    with pytest.raises(TimeoutError, match='kill -CONT'):
        process(bytes(4 * 1024 * 1024))
    assert process(_wrap_timeout=helper.ANSWER)


def test_a_helper_on_which_one_call_hangs_is_kept(
        hasty: helper.Context, monkeypatch: pytest.MonkeyPatch) -> None:
    # It is well, but may be slow; a call hangs for longer.
    monkeypatch.setattr(helper, 'PING', 30.0)
    pid = process(_wrap_timeout=helper.ANSWER)
    with pytest.raises(TimeoutError, match='though it is well'):
        nap(100)
    assert process(_wrap_timeout=helper.ANSWER) == pid
    os.kill(pid, signal.SIGKILL)


def test_calls_that_hang_leave_room_for_others(
        hasty: helper.Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helper, 'PING', 30.0)
    pid = process(_wrap_timeout=helper.ANSWER)
    for _ in range(4):
        with pytest.raises(TimeoutError, match='though it is well'):
            nap(100, _wrap_timeout=0.01)
    assert process(_wrap_timeout=helper.ANSWER) == pid
    os.kill(pid, signal.SIGKILL)


def test_a_call_that_times_out_itself_says_so(hasty: helper.Context) -> None:
    with pytest.raises(TimeoutError, match=r'^of its own$'):
        time_out(_wrap_timeout=helper.ANSWER)
    assert hasty.channel is not None


def test_so_many_helpers_are_left_and_no_more(hasty: helper.Context) -> None:
    for _ in range(helper.MOST_LEFT):
        stopped = _stop_helper()
        with pytest.raises(TimeoutError):
            process()
    for _ in range(2):
        with pytest.raises(TimeoutError, match=r'4 privileged.*no other'):
            process()
    os.kill(stopped, signal.SIGCONT)

    def again() -> bool:
        try:
            return bool(process(_wrap_timeout=helper.ANSWER))
        except TimeoutError:
            return False

    until(again, 'one of them has ended')


def test_the_end_of_a_service_waits_for_no_helper(
        hasty: helper.Context) -> None:
    _stop_helper()
    hasty.stop()
    assert hasty.channel is None


def test_a_helper_that_has_died_is_replaced(hasty: helper.Context) -> None:
    pid = process(_wrap_timeout=helper.ANSWER)
    os.kill(pid, signal.SIGKILL)
    channel = hasty.channel
    assert channel is not None
    until(lambda: not channel.running, 'its end is seen')
    assert process(_wrap_timeout=helper.ANSWER) != pid


def test_a_start_that_hangs_is_bounded(
        starts: helper.Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helper, 'START', 0.2)
    monkeypatch.setattr(starts, 'left', [])
    with subprocess.Popen(['sleep', '60']) as sudo:
        _command('sh', '-c', f'while kill -0 {sudo.pid} 2>/dev/null; '
                 'do sleep 0.05; done; exit 1', 'sh')
        for _ in range(helper.MOST_LEFT):
            with pytest.raises(TimeoutError, match='did not start within'):
                process()
        with pytest.raises(TimeoutError, match='no other is started'):
            process()
        sudo.kill()
    monkeypatch.setattr(helper, 'START', 30.0)
    until(lambda: not any(is_left() for is_left in starts.left[:-1]),
          'those have ended')
    _allow()
    assert process(_wrap_timeout=helper.ANSWER)


def test_a_helper_that_does_not_answer_its_first_ping(
        starts: helper.Context, monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path) -> None:
    monkeypatch.setattr(helper, 'ANSWER', 0.3)
    monkeypatch.setattr(starts, 'left', [])
    script = tmp_path / 'mute.py'
    script.write_text(
        'import os, socket, sys\n'
        'channel = socket.socket(socket.AF_UNIX)\n'
        'channel.connect(sys.argv[-1])\n'
        'if os.fork() == 0:\n'
        '    while channel.recv(1024):\n'
        '        pass\n')
    _command(sys.executable, str(script))
    with pytest.raises(daemon.FailedToDropPrivileges):
        process()
    # It ends as its connection does.
    (is_left,) = starts.left
    until(lambda: not is_left(), 'it has ended')


# What a helper's process is

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason='a helper that is not root has no privilege')


@needs_root
def test_what_a_helper_gives_up(hasty: helper.Context) -> None:
    found = dict(line.split(':\t') for line in
                 status(_wrap_timeout=helper.ANSWER).splitlines())
    assert found['NoNewPrivs'] == '1'
    for which in ('CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb'):
        assert int(found[which], 16) == 0, which


def test_a_helper_cannot_be_looked_into(hasty: helper.Context) -> None:
    """Not dumpable: no core, no ptrace by another process of its user."""
    pid = process(_wrap_timeout=helper.ANSWER)
    child = os.fork()
    if child == 0:
        # Its own user, without the capability that root looks with.
        capabilities.drop_all_caps_except([], [], [])
        try:
            os.readlink(f'/proc/{pid}/exe')
        except PermissionError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def _started_with(*arguments: str, **environment: str) -> str:
    """What a helper says that does not start."""
    _command('env', f'PYTHONPATH={os.pathsep.join(sys.path)}',
             *(f'{name}={value}' for name, value in environment.items()),
             sys.executable, '-W', 'ignore', '-c',
             'from oslo_privsep.daemon import helper_main; helper_main()',
             *arguments)
    with pytest.raises(daemon.FailedToDropPrivileges) as caught:
        context.start()
    return str(caught.value)


@needs_root
def test_a_configuration_of_roots_is_taken(
        starts: helper.Context, tmp_path: Path) -> None:
    (tmp_path / 'nova.conf').touch(0o640)
    os.chown(tmp_path / 'nova.conf', 0, 1234)
    (tmp_path / 'conf.d').mkdir()
    (tmp_path / 'conf.d' / 'a.conf').touch()
    (tmp_path / 'link.conf').symlink_to('nova.conf')
    _command('env', f'PYTHONPATH={os.pathsep.join(sys.path)}',
             sys.executable, '-W', 'ignore', '-c',
             'from oslo_privsep.daemon import helper_main; helper_main()',
             '--config-file', f'{tmp_path}/nova.conf',
             '--config-file', f'{tmp_path}/link.conf',
             '--config-dir', f'{tmp_path}/conf.d/')
    assert process(_wrap_timeout=helper.ANSWER)


@needs_root
@pytest.mark.parametrize('given', ['--config-file', '--config-dir'])
def test_a_configuration_of_another_is_refused(
        starts: helper.Context, tmp_path: Path, given: str) -> None:
    """Of what spoils one tests/unit/test_safe_path.py has more."""
    conf = tmp_path / 'conf.d' / 'nova.conf'
    conf.parent.mkdir()
    conf.touch()
    os.chown(conf, 1234, 0)
    said = _started_with(given, str(
        conf if given == '--config-file' else conf.parent))
    assert str(conf) in said
    assert f'[{SECTION}] helper_command' in said


@needs_root
def test_the_environment_sets_no_option(starts: helper.Context) -> None:
    said = _started_with(OS_VIRTLOGD__VIRTLOGD_SOCKET='/mine')
    assert 'OS_VIRTLOGD__VIRTLOGD_SOCKET' in said
