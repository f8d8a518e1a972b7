# SPDX-License-Identifier: Apache-2.0
"""How a privileged helper is started, and what is said if it does not."""

import logging
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from oslo_config import cfg
from oslo_privsep import daemon, priv_context

from virtlogd_driver import helper

SECTION = 'virtlogd_test_helper'
context = helper.Context(
    'tests', cfg_section=SECTION, pypath=f'{__name__}.context',
    capabilities=[])
REFUSED = 'sudo: a password is required'


@pytest.fixture
def starts() -> Iterator[helper.Context]:
    """A context that has not been started yet."""
    context._failed = False
    yield context
    context.stop()
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
