# SPDX-License-Identifier: Apache-2.0
"""virtlogd-console-relay, before it serves."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize('line', [
    'relay_port_viewers = many', 'relay_writers = nobody',
    'relay_allowed = 192.0.2.0/99'])
def test_options_that_cannot_be_used_are_named_when_they_are_read_again(
        tmp_path: Path, line: str) -> None:
    config = tmp_path / 'nova.conf'
    config.write_text('[libvirt]\nconnection_uri = test:///default\n'
                      f'[virtlogd]\nrelay_socket = {tmp_path}/socket\n')
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / 'notify'))
        notified.settimeout(60)
        relay = subprocess.Popen(
            [sys.executable, '-W', 'ignore', '-m', 'virtlogd_driver.cmd.relay',
             '--config-file', str(config)], stderr=subprocess.PIPE, text=True,
            env={**os.environ, 'NOTIFY_SOCKET': str(tmp_path / 'notify')})
        assert notified.recv(99) == b'READY=1'
        config.write_text(config.read_text() + line)
        relay.send_signal(signal.SIGHUP)
        said = relay.stderr.readline()
        while said.startswith('INFO '):
            said = relay.stderr.readline()
        relay.terminate()
        _, rest = relay.communicate(timeout=60)
    assert said.startswith('ERROR The options are not changed: ')
    assert line.partition(' ')[0] in said
    assert 'Traceback' not in rest
