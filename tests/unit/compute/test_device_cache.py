# SPDX-License-Identifier: Apache-2.0
"""The cache never gives what was looked up before a guest's last change."""

import pytest

from virtlogd_driver.compute.device_cache import DeviceCache
from virtlogd_driver.guest.char_device import CharDevice

TCP = (CharDevice(tag='serial', type='tcp'),)
PTY = (CharDevice(tag='serial', type='pty'),)
OTHER = (CharDevice(tag='serial', type='file'),)


def never() -> tuple[CharDevice, ...]:
    raise AssertionError('it is known')


def test_looked_up_once() -> None:
    devices = DeviceCache()
    assert devices.get('guest', lambda: TCP) == TCP
    assert devices.get('guest', never) == TCP
    assert devices.get('other', lambda: ()) == ()
    assert devices.get('other', never) == ()


def test_forgotten() -> None:
    devices = DeviceCache()
    devices.get('guest', lambda: TCP)
    devices.get('other', lambda: OTHER)
    devices.forget('guest')
    assert devices.get('guest', lambda: PTY) == PTY
    assert devices.get('other', never) == OTHER


def test_a_change_meanwhile() -> None:
    devices = DeviceCache()

    def look() -> tuple[CharDevice, ...]:
        devices.forget('guest')
        return PTY
    assert devices.get('guest', look) == PTY
    assert devices.get('guest', lambda: TCP) == TCP


def test_a_failure_is_not_kept() -> None:
    devices = DeviceCache()

    def fail() -> tuple[CharDevice, ...]:
        raise LookupError('gone')
    with pytest.raises(LookupError, match='gone'):
        devices.get('guest', fail)
    assert devices.get('guest', lambda: TCP) == TCP
