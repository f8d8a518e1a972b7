# SPDX-License-Identifier: Apache-2.0
"""virtlogd-console-relay, before it serves."""

import subprocess
import sys

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
