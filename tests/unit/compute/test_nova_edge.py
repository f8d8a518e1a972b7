# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

import pytest
from nova import exception as nova_exception

from virtlogd_driver import exception
from virtlogd_driver.compute import nova_edge

# Hooks that run before a fork run in reverse order of their registration:
# eventlet's, which exchanges the list of threads (until 0.40.0), then this
# one, during which the call is made.
_FORK_MEANWHILE = '''
import os
import subprocess
from eventlet import patcher
threading = patcher.original('threading')
forking, called = threading.Event(), threading.Event()

def before_fork():
    forking.set()
    called.wait(5)

os.register_at_fork(before=before_fork)
import eventlet
eventlet.monkey_patch()
from eventlet import tpool
from virtlogd_driver.compute import nova_edge

class Connection:
    def answer(self):
        return 'answer'

def ask(connection):
    assert forking.wait(30)
    answer = connection.answer()
    called.set()
    return (threading.current_thread().name.split('_')[0],
            type(connection).__name__, answer)

connection = tpool.Proxy(Connection())
asking = eventlet.spawn(nova_edge.outside_eventlet, ask, connection)
eventlet.sleep(0)
# As oslo.concurrency's processutils do.
subprocess.run(['true'], preexec_fn=lambda: None)
with eventlet.Timeout(5):
    print(*asking.wait())
os._exit(0)
'''


def test_a_guest_that_is_gone_is_one_for_nova() -> None:
    with (pytest.raises(nova_exception.InstanceNotFound),
          nova_edge.nova_errors()):
        raise exception.GuestNotFound('no domain')


def test_outside_eventlet_a_fork_harms_no_call() -> None:
    """nova 31, with eventlet 0.39: a pass of the health checks never ended."""
    ran = subprocess.run(
        [sys.executable, '-W', 'ignore', '-u', '-c', _FORK_MEANWHILE],
        check=True, capture_output=True, text=True, timeout=60)
    assert ran.stdout == 'tpool Connection answer\n'


_STALLED = '''
import eventlet
eventlet.monkey_patch()
from eventlet import patcher
from virtlogd_driver import exception
from virtlogd_driver.compute import nova_edge

event = patcher.original('threading').Event
others = event()

def other():
    for _ in range(3):
        eventlet.sleep(0.05)
    others.set()

eventlet.spawn(other)
nova_edge.DISKS._patience = 60
print(nova_edge.DISKS.ask('/x/y', others.wait, 50))
nova_edge.DISKS._patience = 0.5
try:
    nova_edge.DISKS.ask('/x/y', event().wait)
except exception.DiskStalled:
    print('stalled')
os._exit(0)
'''


def test_outside_eventlet_a_file_system_that_stalls() -> None:
    ran = subprocess.run(
        [sys.executable, '-W', 'ignore', '-u', '-c', f'import os{_STALLED}'],
        check=True, capture_output=True, text=True, timeout=60)
    assert ran.stdout == 'True\nstalled\n'


def test_without_eventlet_there_is_nothing_to_be_outside_of() -> None:
    assert nova_edge.outside_eventlet(divmod, 7, 2) == (3, 1)
