# SPDX-License-Identifier: Apache-2.0
"""nova's own driver does wrong with TCP ports what this one does right.

Each test asks both drivers the same. Where nova's own begins to do better its
half fails: then the override may not be needed any more.
"""

import pathlib
import socket
import uuid
from collections.abc import Callable
from typing import Any

import fixtures
import nova.conf
import pytest
from lxml import etree
from nova import exception as nova_exception
from nova import objects
from nova.console import serial as nova_serial
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import migration as nova_migration
from oslo_config import fixture as config_fixture

from tests.unit import fake_libvirt
from virtlogd_driver.compute import driver
from virtlogd_driver.guest import migration

objects.register_all()

HOST = '127.0.0.1'
FIRST, SECOND = 10000, 10001
A, B = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))
IMAGE = objects.ImageMeta.from_dict(
    {'properties': {'hw_architecture': 'x86_64'}})
FLAVOR = objects.Flavor(extra_specs={})

Make = Callable[..., Any]


class Drivers(fixtures.Fixture):
    """Drivers of one host, one after the other."""

    def __init__(self, *domains: str) -> None:
        self._domains = domains

    def _setUp(self) -> None:
        self._fake = self.useFixture(fake_libvirt.FakeLibvirt(*self._domains))

    def start(self, ours: bool) -> Any:
        """nova-compute starts: nothing is known any more."""
        self.useFixture(fixtures.MonkeyPatch(
            'nova.console.serial.ALLOCATED_PORTS', set()))
        made = (driver.VirtlogdDriver if ours
                else libvirt_driver.LibvirtDriver)(None)
        made._host.get_connection = lambda: self._fake.connection
        if ours:
            made._adopt_guests()
        return made


@pytest.fixture(autouse=True)
def conf(tmp_path: pathlib.Path) -> Any:
    with config_fixture.Config(nova.conf.CONF) as made:
        made.load_raw_values()
        made.conf([], project='nova', default_config_files=[])
        made.config(instances_path=str(tmp_path))
        made.config(group='serial_console', enabled=True)
        made.config(group='libvirt', virt_type='qemu')
        made.config(group='virtlogd', qemu_conf=str(tmp_path / 'qemu.conf'))
        for guest in (A, B):
            (tmp_path / guest).mkdir()
        yield made


@pytest.fixture
def make() -> Any:
    with fixtures.Fixture() as cleanup:
        yield lambda *domains: cleanup.useFixture(Drivers(*domains))


both = pytest.mark.parametrize('ours', [False, True], ids=['nova', 'this'])


def guest(uuid: str, name: str, devices: str | None = None) -> str:
    return fake_libvirt.domain_xml(
        devices or fake_libvirt.serial(0, FIRST), name=name, guest_uuid=uuid)


def instance(uuid: str) -> objects.Instance:
    return objects.Instance(
        uuid=uuid, id=1, flavor=FLAVOR, image_ref='', numa_topology=None,
        system_metadata={'image_hw_architecture': 'x86_64'})


def port_of(made: Any, uuid: str) -> int | None:
    """The port that a guest is given for its next start."""
    config = vconfig.LibvirtConfigGuest()
    config.virt_type = 'qemu'
    made._create_consoles(config, instance(uuid), FLAVOR, IMAGE)
    source = etree.fromstring(config.to_xml()).find('devices/serial/source')
    return None if source is None else int(source.get('service'))


def held(made: Any) -> set[int]:
    """The ports that the driver will not give to another guest."""
    if isinstance(made, driver.VirtlogdDriver):
        return {port for _, port in made._consoles.ports.held()}
    return {port for _, port in nova_serial.ALLOCATED_PORTS}


@both
def test_reservations_survive_a_restart(make: Make, ours: bool) -> None:
    """D12. The guest that has the port is off for the moment."""
    made = make(guest(A, 'a')).start(ours)
    assert port_of(made, B) == (SECOND if ours else FIRST)


@both
def test_a_failed_start_leaks_no_port(make: Make, ours: bool) -> None:
    """D13. nova undefines the guest, and that is all."""
    made = make().start(ours)
    port_of(made, A)
    made._undefine_domain(instance(A))
    assert held(made) == (set() if ours else {FIRST})


@both
def test_a_second_release_frees_no_port_of_another(
        make: Make, ours: bool) -> None:
    """D14. A guest is stopped twice, and another one starts in between."""
    made = make(guest(A, 'a')).start(ours)
    made._destroy(instance(A))
    other = port_of(made, B)
    made._destroy(instance(A))
    assert (other in held(made)) is ours


@both
def test_a_guest_that_is_rescued_keeps_its_port(
        make: Make, ours: bool) -> None:
    """D15. unrescue starts the guest from an XML that was kept."""
    made = make(guest(A, 'a')).start(ours)
    made._destroy(instance(A))
    assert port_of(made, B) == (SECOND if ours else FIRST)
    # nova has no port for it at all: it takes the rescue for a migration.
    assert port_of(made, A) == (FIRST if ours else None)


def migrate_data(address: str | None, **fields: Any) -> Any:
    return objects.LibvirtLiveMigrateData(
        is_shared_instance_path=True, is_shared_block_storage=True,
        block_migration=False, serial_listen_addr=address,
        instance_relative_path=A, src_supports_native_luks=True, **fields)


@both
def test_a_guest_without_tcp_that_comes_leaks_no_port(
        make: Make, ours: bool) -> None:
    """D16. It came from a host without serial consoles, and is deleted."""
    made = make(guest(A, 'a', "<serial type='pty'><target port='0'/>"
                              '</serial>')).start(ours)
    made.pre_live_migration(None, instance(A), {}, [], None,
                            migrate_data(HOST))
    assert held(made) == {FIRST}
    made._destroy(instance(A))
    made._undefine_domain(instance(A))
    assert held(made) == (set() if ours else {FIRST})


@both
def test_a_destination_without_serial_consoles_is_not_refused(
        make: Make, ours: bool) -> None:
    """D17."""
    made = make(guest(A, 'a')).start(ours)
    if ours:
        made._verify_serial_console_is_disabled()
        return
    with pytest.raises(nova_exception.MigrationError):
        made._verify_serial_console_is_disabled()


@both
def test_its_xml_can_be_written(ours: bool) -> None:
    """D18. The XML for such a destination."""
    xml = guest(A, 'a')
    data = migrate_data(None, serial_listen_ports=[])
    if not ours:
        with pytest.raises(TypeError):
            nova_migration._update_serial_xml(etree.fromstring(xml), data)
        return
    rewritten = migration.for_destination(
        xml, migration.Destination(True, None), lambda port, here: '/log')
    updated = nova_migration._update_serial_xml(
        etree.fromstring(rewritten), data)
    assert updated.find('devices/serial').get('type') == 'pty'


@both
def test_no_port_is_left_for_a_guest_that_comes(
        make: Make, ours: bool, conf: Any) -> None:
    """What it got until then is free again."""
    conf.config(group='serial_console', port_range=f'{FIRST}:{FIRST + 1}')
    domains = [guest(B, 'b')]
    made = make(*domains).start(ours)
    if not ours:
        nova_serial.acquire_port(HOST)
    two = instance(A)
    two.flavor = objects.Flavor(extra_specs={'hw:serial_port_count': '2'})
    before = held(made)
    with pytest.raises(nova_exception.SocketPortRangeExhaustedException):
        made.pre_live_migration(None, two, {}, [], None, migrate_data(HOST))
    assert held(made) == before
    if ours:
        assert set() == nova_serial.ALLOCATED_PORTS


@both
def test_the_last_port_serves_a_guest_that_comes(
        make: Make, ours: bool, conf: Any) -> None:
    """The others are taken, by whoever it is."""
    conf.config(group='serial_console', port_range=f'{FIRST}:{SECOND}')
    made = make().start(ours)
    with socket.create_server((HOST, FIRST)):
        if not ours:
            with pytest.raises(
                    nova_exception.SocketPortRangeExhaustedException):
                made.pre_live_migration(
                    None, instance(A), {}, [], None, migrate_data(HOST))
            return
        data = made.pre_live_migration(
            None, instance(A), {}, [], None, migrate_data(HOST))
    assert data.serial_listen_ports == [SECOND]
    assert set() == nova_serial.ALLOCATED_PORTS


