# SPDX-License-Identifier: Apache-2.0
"""The driver keeps or sends the log when nova cleans a guest up."""

import errno
import os
import pathlib

import nova.conf
import pytest
from nova import context as nova_context
from nova import objects
from nova.compute import task_states
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import utils as libvirt_utils

from tests.unit.compute.given import UUID
from virtlogd_driver.compute import cold_migration
from virtlogd_driver.virtlogd import privileged

CONF = nova.conf.CONF


class TestCleanup:

    @pytest.fixture
    def cleanup(self, make_driver, instance, directory, monkeypatch):
        """What of the guest is copied, and where to, when nova cleans up."""
        copied = []

        def copy(source, target, host, receive, **_):
            if receive:
                raise OSError('there is nothing yet')
            copied.append((
                host, pathlib.Path(target), sorted(os.listdir(source))))
        monkeypatch.setattr(libvirt_utils, 'copy_image', copy)
        monkeypatch.setattr(libvirt_driver.LibvirtDriver, 'cleanup',
                            lambda *_: None)
        monkeypatch.setattr(
            privileged, 'probe', lambda *_: (privileged.UP, '', ()))

        def run(task_state, destroy_disks=True, cross_cell=False,
                evacuations=0, host='source'):
            monkeypatch.setattr(
                objects.MigrationList, 'get_by_filters',
                lambda *_: [objects.Migration()] * evacuations)
            monkeypatch.setattr(
                objects.Migration, 'get_by_instance_and_status',
                lambda *_: objects.Migration(
                    source_compute='source', cross_cell_move=cross_cell))
            monkeypatch.setattr(
                objects.ComputeNode, 'get_first_node_by_host_for_old_compat',
                lambda _, host: objects.ComputeNode(
                    host_ip={'source': '192.0.2.7'}[host]))
            monkeypatch.setattr(
                objects.Instance, 'get_by_uuid', lambda *_: instance)
            instance.host = host
            instance.task_state = task_state
            (directory / 'console.log').write_bytes(b'x')
            made = make_driver()
            made.cleanup(nova_context.get_admin_context(), instance, [], None,
                         destroy_disks)
            made._histories.stop()
            return [(host, target, len(files))
                    for host, target, files in copied]
        return run

    @pytest.mark.parametrize('destroy_disks', [True, False],
                             ids=['own disks', 'shared block storage'])
    def test_a_revert_sends_it_back(self, cleanup, directory,
                                    destroy_disks) -> None:
        there = directory.with_name(f'{UUID}_resize')
        # By its address: hosts need not know each other's names.
        assert cleanup(task_states.RESIZE_REVERTING, destroy_disks)[0] == (
            '192.0.2.7', there, 2)
        # nova leaves the directory where the disks are elsewhere.
        assert os.listdir(directory) == []

    @pytest.mark.parametrize('destroy_disks', [True, False],
                             ids=['own disks', 'shared storage'])
    def test_to_another_cell_it_does_not(self, cleanup, directory,
                                         destroy_disks) -> None:
        """The directory there has kept its name: no other must be made.

        Where it is shared it is this one, and its logs are in use.
        """
        assert cleanup(task_states.RESIZE_REVERTING, destroy_disks,
                       cross_cell=True) == []
        assert os.listdir(directory) == ['console.log']

    def test_where_the_old_directory_is_here(self, cleanup,
                                             directory) -> None:
        directory.with_name(f'{UUID}_resize').mkdir()
        assert cleanup(task_states.RESIZE_REVERTING) == []

    def test_rebuilt(self, cleanup, directory) -> None:
        assert cleanup(task_states.REBUILDING, host=CONF.host) == []
        assert sorted(os.listdir(directory)) == ['console.log']
        assert not directory.with_name(f'{UUID}_console').exists()

    def test_just_evacuated(self, cleanup, directory) -> None:
        """The host was lost, and is back: its files are to go."""
        assert cleanup(task_states.REBUILDING, evacuations=1,
                       host=CONF.host) == []
        assert os.listdir(directory) == ['console.log']


class TestIsThere:

    def test_a_link_to_one_is_a_directory_for_nova(
            self, tmp_path: pathlib.Path) -> None:
        (tmp_path / 'link').symlink_to(tmp_path)
        (tmp_path / 'dangling').symlink_to(tmp_path / 'gone')
        (tmp_path / 'file').touch()
        for name, there in (('link', True), ('', True), ('dangling', False),
                            ('file', False), ('gone', False),
                            ('file/gone', False)):
            assert cold_migration._is_there(f'{tmp_path}/{name}') is there

    def test_its_disk_does_not_tell(
            self, tmp_path: pathlib.Path,
            monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(path: str) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        monkeypatch.setattr(os, 'stat', fail)
        with pytest.raises(OSError, match='Input/output error'):
            cold_migration._is_there(str(tmp_path))
