# SPDX-License-Identifier: Apache-2.0
import os
import pathlib
import threading
from collections.abc import Iterator

import pytest

from tests.unit.virtlogd.patience import lengthen
from virtlogd_driver import exception
from virtlogd_driver.virtlogd import disk, health, privileged
from virtlogd_driver.virtlogd.disk import Disks

MOUNTS = ('/', '/instances', '/instances/a', '/nfs')


@pytest.fixture
def stalled() -> Iterator[Disks]:
    """File systems of which /nfs does not answer."""
    go = threading.Event()
    disks = Disks(patience=0.2, mounted=lambda: MOUNTS)
    lengthen(disks._calls, '/nfs')
    with pytest.raises(exception.DiskStalled):
        disks.ask('/nfs/x', go.wait, 60)
    yield disks
    go.set()


@pytest.mark.parametrize(('path', 'mount'), [
    ('/instances/u/console.log', '/instances'),
    ('/instances/a/console.log', '/instances/a'),
    ('/instances/aa/console.log', '/instances'),
    ('//nfs/../nfs//x', '/nfs'),
    ('/console.log', '/'),
    ('/instances', '/'),
])
def test_mount_of_a_path(path: str, mount: str) -> None:
    assert disk.by_mount([path], MOUNTS) == {mount: [path]}


def test_mounts_of_this_host() -> None:
    found = disk.mounts()
    assert '/' in found
    assert found['/proc'] == 'proc'


def test_a_mount_point_with_odd_characters(
        monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    mountinfo = tmp_path / 'mountinfo'
    mountinfo.write_bytes(
        b'22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n'
        b'23 22 0:40 / /home/a\rb\\040\xff rw - fuse.sshfs c\rd rw\n')
    monkeypatch.setattr(disk, '_MOUNTINFO', mountinfo)
    assert disk.mounts() == {
        '/': 'ext4', os.fsdecode(b'/home/a\rb \xff'): 'fuse.sshfs'}


def test_a_file_system_that_stalls_is_said(stalled: Disks) -> None:
    with pytest.raises(exception.DiskStalled) as raised:
        stalled.ask('/nfs/guest/console.log', os.getcwd)
    assert '/nfs/guest' in str(raised.value)
    assert 'Do not kill virtlogd' in str(raised.value)
    assert stalled.ask('/instances/x/console.log', len, 'abc') == 3


def up(*_: object) -> tuple[str, str, list[str]]:
    return privileged.UP, '', []


def test_no_guest_is_started_into_a_file_system_that_stalls(
        stalled: Disks) -> None:
    with pytest.raises(exception.VirtlogdHung, match='/nfs'):
        health.check_ready('/s', ['/nfs/a/console.log'], 1, up, stalled)
    health.check_ready('/s', ['/instances/b/console.log'], 1, up, stalled)
    assert health.free_space('/nfs/a/console.log', stalled) is None


def test_a_guest_is_started_though_no_thread_can_be(
        monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")
    monkeypatch.setattr(threading.Thread, 'start', fail)
    health.check_ready('/s', ['/instances/b/console.log'], 1, up, Disks())
    assert health.free_space('/instances/b/console.log', Disks()) is None
