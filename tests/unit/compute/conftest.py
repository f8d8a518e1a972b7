# SPDX-License-Identifier: Apache-2.0
"""The driver's fixtures put nova's own classes over libvirt's test driver."""

import pathlib

import fixtures
import nova.conf
import pytest
from nova import objects
from oslo_config import fixture as config_fixture

from tests.unit import fake_libvirt
from tests.unit.compute.given import UUID
from virtlogd_driver.compute import driver, nova_edge


@pytest.fixture
def conf(tmp_path):
    with config_fixture.Config(nova.conf.CONF) as made:
        made.load_raw_values()
        made.conf([], project='nova', default_config_files=[])
        made.config(instances_path=str(tmp_path))
        made.config(group='serial_console', enabled=True)
        made.config(group='libvirt', virt_type='qemu')
        made.config(group='virtlogd', qemu_conf=str(tmp_path / 'qemu.conf'))
        yield made


@pytest.fixture(autouse=True)
def _slow_disks(monkeypatch) -> None:
    """A disk that is well may be slow."""
    monkeypatch.setattr(nova_edge.DISKS, '_patience', 60.0)


@pytest.fixture
def here(monkeypatch) -> list[str]:
    """The servers that nova has on this host."""
    uuids = [UUID]
    monkeypatch.setattr(objects.InstanceList, 'get_uuids_by_host',
                        lambda *_: uuids)
    return uuids


def _stop(made: driver.VirtlogdDriver) -> None:
    """No later test hears of its threads."""
    if made._health is not None:
        made._health.stop()
    made._starts.stop()
    made._histories.stop()


@pytest.fixture
def make_driver(conf, here):
    with fixtures.Fixture() as cleanup:
        def make(*domains: str, **versions: int) -> driver.VirtlogdDriver:
            fake = cleanup.useFixture(
                fake_libvirt.FakeLibvirt(*domains, **versions))
            made = driver.VirtlogdDriver(None)
            made._host.get_connection = lambda: fake.connection
            made.connection = fake.connection
            cleanup.addCleanup(_stop, made)
            return made
        yield make


@pytest.fixture
def instance() -> objects.Instance:
    return objects.Instance(uuid=UUID, id=7)


@pytest.fixture
def directory(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / UUID
    path.mkdir()
    return path
