# SPDX-License-Identifier: Apache-2.0
"""virtlogd-console-relay, before it serves."""

import asyncio
import itertools
import pathlib
import subprocess
import sys
import threading
from unittest import mock

import pytest
from oslo_config import cfg

from virtlogd_driver.cmd import configuration, relay

_PRIVILEGES = """
import ctypes, os, sys
from virtlogd_driver.cmd import configuration, relay
configuration.read(relay.cfg.CONF, ['--config-file', '/dev/null'])
os.geteuid = lambda: 1000
if sys.argv[1] == 'none':
    ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)   # PR_SET_NO_NEW_PRIVS
read_tail = relay._log_reader(relay.cfg.CONF)
print(read_tail.__module__, 'oslo_privsep' in sys.modules)
"""


@pytest.mark.parametrize(('new', 'said'), [
    ('none', 'virtlogd_driver.cmd.relay False'),
    ('some', 'virtlogd_driver.console_log.reader True')])
def test_no_helper_is_loaded_that_cannot_start(new: str, said: str) -> None:
    """As under the service's NoNewPrivileges; it takes a third of the memory
    that the relay has.
    """
    if new == 'some':
        with open('/proc/self/status') as status:
            if 'NoNewPrivs:\t1\n' in status:
                pytest.skip('this process may get no privilege itself')
    found = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', _PRIVILEGES, new], check=True,
        capture_output=True, text=True)
    assert found.stdout.strip() == said


@pytest.mark.parametrize(('text', 'said'), [
    (b'[virtlogd]\nrelay_buffer_bytes = 1MiB\n', 'relay_buffer_bytes'),
    (b'[virtlogd]\nrelay_writers = none\n', 'relay_writers'),
    (b'[DEFAULT]\n# gr\xf6sser\n', 'utf-8'),
    (b'no option', 'cannot be read')])
def test_an_option_that_cannot_be_read_anew_is_one_line(
        tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture,
        text: bytes, said: str) -> None:
    file = tmp_path / 'nova.conf'
    file.write_text('')
    config = cfg.ConfigOpts()
    configuration.read(config, ['--config-file', str(file)])
    serving = mock.Mock()

    def reload() -> None:
        async def run() -> None:
            wanted = asyncio.Event()
            wanted.set()
            reloading = asyncio.create_task(
                relay._reload(config, serving, wanted))
            while not (said_of() or serving.reload.called):
                await asyncio.sleep(0.01)
            reloading.cancel()
        asyncio.run(run())

    def said_of() -> list[str]:
        return [record.getMessage() for record in caplog.records
                if record.name == relay.LOG.name]

    file.write_bytes(text)
    reload()
    serving.reload.assert_not_called()
    (message,) = said_of()
    assert message.startswith('The options are not changed')
    assert said in message
    caplog.clear()
    file.write_text('[virtlogd]\nrelay_writers = first\n')
    reload()
    (taken,) = serving.reload.call_args.args
    assert taken.writers == 'first'


def test_viewers_do_not_wait_while_the_options_are_read_again(
        monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is one more signal lost that comes meanwhile."""
    answers = threading.Semaphore(0)
    read: list[object] = []

    def settings(config: object) -> object:
        assert answers.acquire(timeout=60)
        read.append(config)
        return config

    monkeypatch.setattr(relay, '_settings', settings)
    config, serving = mock.Mock(), mock.Mock()

    async def run() -> None:
        wanted = asyncio.Event()
        reloading = asyncio.create_task(
            relay._reload(config, serving, wanted))
        for _ in range(3):
            wanted.set()
            await asyncio.sleep(0.01)
        assert read == []
        answers.release(2)
        while serving.reload.call_count < 2:
            await asyncio.sleep(0.01)
        reloading.cancel()

    asyncio.run(run())
    assert read == [config] * 2


def test_an_error_that_is_not_foreseen_is_not_the_last_reading(
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(
        relay, '_settings', mock.Mock(
            side_effect=itertools.chain([KeyError('x')],
                                        itertools.repeat('taken'))))
    config, serving = mock.Mock(), mock.Mock()

    async def run() -> None:
        wanted = asyncio.Event()
        reloading = asyncio.create_task(
            relay._reload(config, serving, wanted))
        while not serving.reload.called:
            wanted.set()
            await asyncio.sleep(0.01)
        reloading.cancel()

    asyncio.run(asyncio.wait_for(run(), 60))
    assert serving.reload.call_args_list[0] == mock.call('taken')
    assert 'not foreseen' in caplog.text
