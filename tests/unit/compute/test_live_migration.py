# SPDX-License-Identifier: Apache-2.0
"""The driver decides what a live migration needs before it begins."""


import pytest
from nova import exception as nova_exception
from nova import objects
from nova.virt.libvirt import driver as libvirt_driver

from tests.unit.compute.given import flavor_of
from virtlogd_driver.compute import live_migration


class TestLiveMigration:

    @pytest.fixture
    def node(self, monkeypatch):
        """What nova knows of the destination, or fails with."""
        def say(stats: object) -> None:
            def find(*_: object) -> object:
                if isinstance(stats, Exception):
                    raise stats
                return objects.ComputeNode(stats=stats)
            monkeypatch.setattr(
                objects.ComputeNode, 'get_first_node_by_host_for_old_compat',
                find)
        return say

    @pytest.mark.parametrize(('stats', 'capable'), [
        ({live_migration.STAT: 'True', 'uptime': None}, True),
        ({live_migration.STAT: 'False'}, False), ({'uptime': '1'}, False),
        (None, False), (nova_exception.ComputeHostNotFound(host='x'), False)])
    def test_what_the_destination_can_do(self, make_driver, node, stats,
                                         capable, caplog) -> None:
        """Where that is not known the guest moves, and it is said."""
        node(stats)
        made = make_driver()
        assert (made._source._stat_of(None, 'host2') == 'True') == capable
        assert ('host2 can do is not known' in caplog.text) == isinstance(
            stats, Exception)

    @pytest.mark.parametrize(('theirs', 'qemu', 'ours'), [
        ({}, 7_002_000, {live_migration.STAT: 'True'}),
        ({'stats': {'uptime': '1'}}, 7_002_000,
         {'uptime': '1', live_migration.STAT: 'True'}),
        ({'stats': {}}, 2_006_000, {live_migration.STAT: 'False'})])
    def test_what_a_host_says_of_itself(
            self, make_driver, monkeypatch, theirs, qemu, ours) -> None:
        monkeypatch.setattr(libvirt_driver.LibvirtDriver,
                            'get_available_resource', lambda *_: theirs)
        made = make_driver(qemu_version=qemu)
        assert made.get_available_resource('node')['stats'] == ours

    @pytest.mark.parametrize('lacking', ['directory', 'port', 'room'])
    def test_refused_before_it_moves(self, make_driver, instance, conf,
                                     tmp_path, lacking) -> None:
        instance.flavor = flavor_of()
        instance.image_ref = ''
        instance.system_metadata = {'image_hw_architecture': 'x86_64'}
        conf.config(group='virtlogd', max_history_bytes=0)
        conf.config(group='serial_console', port_range='10000:10000')
        made = make_driver(qemu_version=2_006_000)
        if lacking == 'directory':
            conf.config(instances_path=str(tmp_path / 'gone'))
            reason = 'gone is not there'
        elif lacking == 'port':
            made._consoles.ports.acquire('other', '127.0.0.1', 1)
            reason = '10000:10000'
        else:
            conf.config(group='virtlogd', max_history_bytes=1 << 60)
            reason = 'lower .* max_history_bytes'
        with pytest.raises(nova_exception.MigrationPreCheckError,
                           match=reason):
            made.check_can_live_migrate_destination(None, instance)
