# SPDX-License-Identifier: Apache-2.0
"""A host that is back with nova's own driver is taken for one without logs."""

import pytest
from nova import context
from oslo_config import cfg

from tests.lab.nova_node import NovaNode
from virtlogd_driver.compute.histories import STAT, stat_of
from virtlogd_driver.compute.live_migration import TRAIT

#: What an operator may have set as well.
OTHER = 'CUSTOM_OF_THE_OPERATOR'


class Placement:
    """Placement, as ``openstack resource provider trait`` asks it."""

    def __init__(self, nova: NovaNode) -> None:
        self._api = nova._nova.placement
        (provider,) = self._api.get('/resource_providers').body[
            'resource_providers']
        self._path = f'/resource_providers/{provider["uuid"]}/traits'

    def traits(self) -> set[str]:
        return set(self._get()['traits'])

    def _get(self):
        return self._api.get(self._path, version='1.6').body

    def set(self, traits: set[str]) -> None:
        generation = self._get()['resource_provider_generation']
        done = self._api.put(self._path, {
            'traits': sorted(traits),
            'resource_provider_generation': generation}, version='1.6')
        assert done.status == 200, done.body

    def add(self, trait: str) -> None:
        assert self._api.put(f'/traits/{trait}', {},
                             version='1.6').status in (201, 204)
        self.set(self.traits() | {trait})


def update(nova: NovaNode) -> None:
    """What nova-compute does each minute."""
    nova._nova.compute.manager.update_available_resource(
        context.get_admin_context())


def is_capable(nova: NovaNode) -> bool:
    """What the source of a live migration takes it for."""
    return stat_of(context.get_admin_context(), nova.host.name) == 'True'


def test_going_back(nova: NovaNode) -> None:
    nova.create_flavor('trait', extra_specs={f'trait:{TRAIT}': 'required'})
    nova.create_flavor('stat', extra_specs={
        f'capabilities:{STAT}': 'True'})
    placement = Placement(nova)
    placement.add(OTHER)
    assert TRAIT in placement.traits()
    assert is_capable(nova)
    for flavor in ('trait', 'stat'):
        nova.delete(nova.boot(flavor))

    cfg.CONF.set_override('compute_driver', 'libvirt.LibvirtDriver')
    nova.restart_compute()
    assert type(nova.driver).__name__ == 'LibvirtDriver'
    assert not is_capable(nova)
    with pytest.raises(RuntimeError, match='No valid host'):
        nova.boot('stat')
    # Placement keeps what nova does not know.
    update(nova)
    assert TRAIT in placement.traits()
    nova.delete(nova.boot('trait'))
    # The step of doc/source/install.rst.
    placement.set(placement.traits() - {TRAIT})
    update(nova)
    nova.restart_compute()
    assert TRAIT not in placement.traits()
    assert OTHER in placement.traits()
    with pytest.raises(RuntimeError, match='No valid host'):
        nova.boot('trait')

    cfg.CONF.set_override('compute_driver', 'virtlogd_driver.VirtlogdDriver')
    nova.restart_compute()
    update(nova)
    assert {TRAIT, OTHER} <= placement.traits()
    assert is_capable(nova)
    for flavor in ('trait', 'stat'):
        nova.delete(nova.boot(flavor))
