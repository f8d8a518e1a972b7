# SPDX-License-Identifier: Apache-2.0
"""A service tells systemd how it is doing."""

import os
import socket

import pytest

from virtlogd_driver.relay.notify import notify, watchdog_interval


@pytest.mark.parametrize('abstract', [False, True])
def test_notify(monkeypatch, tmp_path, abstract) -> None:
    path = f'{tmp_path}/notify'
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind('\0' + path[1:] if abstract else path)
        monkeypatch.setenv('NOTIFY_SOCKET', '@' + path[1:] if abstract
                           else path)
        notify('READY=1')
        assert systemd.recv(100) == b'READY=1'


def test_nobody_listens(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv('NOTIFY_SOCKET', raising=False)
    notify('READY=1')
    monkeypatch.setenv('NOTIFY_SOCKET', f'{tmp_path}/gone')
    notify('READY=1')


@pytest.mark.parametrize(('microseconds', 'pid', 'seconds'), [
    (None, None, None), ('30000000', None, 15.0), ('30000000', '1', None),
    ('30000000', 'own', 15.0), ('', None, None)])
def test_watchdog(monkeypatch, microseconds, pid, seconds) -> None:
    for name, value in (('WATCHDOG_USEC', microseconds),
                        ('WATCHDOG_PID',
                         str(os.getpid()) if pid == 'own' else pid)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert watchdog_interval() == seconds
