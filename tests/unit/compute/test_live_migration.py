# SPDX-License-Identifier: Apache-2.0
"""What the driver decides before a live migration."""

import types

import pytest
from nova import exception as nova_exception
from nova import objects
from nova.scheduler.client import report

from tests.unit.compute.given import flavor_of
from virtlogd_driver.compute import live_migration


class TestLiveMigration:

    @pytest.fixture
    def node(self, monkeypatch):
        """What placement says of the destination, or fails with."""
        def say(found: object) -> None:
            def traits(*_: object) -> object:
                if isinstance(found, Exception):
                    raise found
                return types.SimpleNamespace(traits=found)
            monkeypatch.setattr(
                objects.ComputeNode, 'get_first_node_by_host_for_old_compat',
                lambda *_: types.SimpleNamespace(uuid='node'))
            monkeypatch.setattr(
                report, 'report_client_singleton',
                lambda: types.SimpleNamespace(get_provider_traits=traits))
        return say

    @pytest.mark.parametrize(('found', 'capable'), [
        ({live_migration.TRAIT, 'HW_CPU_X86_SSE'}, True), (set(), False),
        (nova_exception.ResourceProviderTraitRetrievalFailed(uuid='node'),
         False)])
    def test_what_the_destination_can_do(self, make_driver, node, found,
                                         capable, caplog) -> None:
        """Where that is not known the guest moves, and it is said."""
        node(found)
        made = make_driver()
        assert made._source._is_capable(None, 'host2') == capable
        assert ('host2 can do is not known' in caplog.text) == isinstance(
            found, Exception)

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
