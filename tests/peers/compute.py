# SPDX-License-Identifier: Apache-2.0
"""One nova-compute's driver has hundreds of guests on libvirt's test driver.

The driver is the real one with all that it calls in nova and libvirt, except
for disks. libvirt's test driver keeps the domains; what it does not know of
a host (versions, capabilities) is answered by nova's own fake.
"""

import functools
import os
import uuid
from typing import Any

import fixtures
import libvirt
import nova.conf
from lxml import etree
from nova import context as nova_context
from nova import objects
from nova.console import serial as nova_serial
from nova.network import model as network_model
from nova.tests import fixtures as nova_fixtures
from nova.tests.fixtures import libvirt as fakelibvirt
from nova.virt import fake
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import utils as libvirt_utils

from tests.peers import without_host
from virtlogd_driver.compute import driver

CONF = nova.conf.CONF
DRIVERS = {'nova': libvirt_driver.LibvirtDriver,
           'virtlogd_driver': driver.VirtlogdDriver}
NO_DISKS: dict[str, Any] = {
    'block_device_mapping': [], 'ephemerals': [], 'image': [],
    'root_device_name': '/dev/vda', 'swap': None}


class _Connection:
    """Domains from one connection, the facts of the host from another."""

    def __init__(self) -> None:
        libvirt.registerErrorHandler(lambda *_: None, None)
        self.domains = libvirt.open('test:///default')
        for domain in self.domains.listAllDomains():
            domain.destroy()
            domain.undefine()
        self._facts = fakelibvirt.Connection(
            'qemu:///system', version=9_000_000, hv_version=7_002_000,
            host_info=fakelibvirt.HostInfo(cpu_cores=4, kB_mem=1 << 30))

    def defineXML(self, xml: str) -> libvirt.virDomain:
        domain = etree.fromstring(xml)
        domain.set('type', 'test')
        return self.domains.defineXML(etree.tostring(domain).decode())

    def __getattr__(self, name: str) -> Any:
        if name in ('listAllDomains', 'lookupByName', 'lookupByUUIDString'):
            return getattr(self.domains, name)
        return getattr(self._facts, name)


class Compute(fixtures.Fixture):
    """Boot guests, read their logs, delete them.

    :param driver: a key of DRIVERS
    :param directory: for the instances and nova's state
    """

    def __init__(self, driver: str, directory: str) -> None:
        self._driver = driver
        self.instances_path = os.path.join(directory, 'instances')
        self._state = os.path.join(directory, 'state')

    def _setUp(self) -> None:
        os.mkdir(self.instances_path)
        os.mkdir(self._state)
        # As long as the one that libvirt installs.
        qemu_conf = os.path.join(self._state, 'qemu.conf')
        with open(qemu_conf, 'w') as out:
            out.write('# A comment on an option that is not set.\n' * 1000)
        objects.register_all()
        self.useFixture(nova_fixtures.ConfFixture(CONF))
        for group, name, value in (
                (None, 'instances_path', self.instances_path),
                (None, 'state_path', self._state),
                ('libvirt', 'cpu_mode', 'none'),
                ('libvirt', 'virt_type', 'qemu'),
                ('oslo_concurrency', 'lock_path', self._state),
                ('serial_console', 'enabled', True),
                ('virtlogd', 'qemu_conf', qemu_conf),
                ('vnc', 'enabled', False)):
            CONF.set_override(name, value, group)
        without_host.without_virtlogd()
        self.useFixture(nova_fixtures.PrivsepFixture())
        self._images = self.useFixture(
            nova_fixtures.LibvirtImageBackendFixture())
        self.useFixture(fixtures.MockPatchObject(
            objects.Instance, 'save', lambda *_, **__: None))
        for of_database in (objects.BlockDeviceMappingList,
                            objects.ShareMappingList,
                            objects.VirtualInterfaceList):
            self.useFixture(fixtures.MockPatchObject(
                of_database, 'get_by_instance_uuid',
                functools.partial(_none, of_database)))
        self.useFixture(fixtures.MockPatchObject(
            libvirt_driver.LibvirtDriver, '_create_image', _no_disk))
        self.connection = _Connection()
        self.addCleanup(self.connection.domains.close)
        self.driver = DRIVERS[self._driver](fake.FakeVirtAPI(), False)
        self.driver._host.get_connection = lambda: self.connection
        self._context = nova_context.get_admin_context()

    def boot(self) -> objects.Instance:
        instance = _instance(self._context)
        self.driver.spawn(
            self._context, instance, instance.image_meta, [], None, {},
            network_info=[], block_device_info=NO_DISKS)
        return instance

    def delete(self, instance: objects.Instance) -> None:
        self.driver.destroy(self._context, instance, [], NO_DISKS)
        # Mocks remember every instance that they were called with.
        for disk in list(self._images.disks.values()):
            disk.reset_mock()

    def output(self, instance: objects.Instance) -> bytes:
        answer: bytes = self.driver.get_console_output(
            self._context, instance)
        return answer

    def port(self, instance: objects.Instance) -> int:
        return int(self.driver.get_serial_console(
            self._context, instance).port)

    def held_ports(self) -> set[int]:
        """What the driver takes to be in use."""
        if self._driver == 'nova':
            return {port for _, port in nova_serial.ALLOCATED_PORTS}
        return {port for _, port in self.driver._consoles.ports.held()}

    def used_ports(self) -> list[int]:
        """What the guests have in their XML."""
        return sorted(
            int(service)
            for domain in self.connection.domains.listAllDomains()
            for service in etree.fromstring(domain.XMLDesc()).xpath(
                './devices/serial/source/@service'))


def _none(of_database: Any, *_: Any, **__: Any) -> Any:
    return of_database(objects=[])


def _no_disk(_driver: Any, _context: Any, instance: Any,
             *_: Any, **__: Any) -> tuple[bool, bool]:
    """Instead of nova's _create_image: the directory, and no disk."""
    os.makedirs(libvirt_utils.get_instance_path(instance))
    return False, False


def _instance(context: nova_context.RequestContext) -> objects.Instance:
    guest = str(uuid.uuid4())
    return objects.Instance(
        context=context, uuid=guest, id=uuid.UUID(guest).int % (1 << 31),
        architecture=None, cleaned=False, config_drive='',
        default_ephemeral_device=None, default_swap_device=None,
        device_metadata=None, display_name='guest', ephemeral_gb=0,
        ephemeral_key_uuid=None,
        flavor=objects.Flavor(
            id=1, flavorid='1', name='small', memory_mb=64, vcpus=1,
            root_gb=1, ephemeral_gb=0, swap=0, extra_specs={},
            rxtx_factor=1.0, vcpu_weight=0, disabled=False, is_public=True),
        host='host', image_ref='', info_cache=objects.InstanceInfoCache(
            network_info=network_model.NetworkInfo([])),
        instance_type_id=1, kernel_id='', launched_at=None,
        memory_mb=64, metadata={}, migration_context=None,
        new_flavor=None, node='host', numa_topology=None, old_flavor=None,
        os_type=None, pci_devices=objects.PciDeviceList(objects=[]),
        pci_requests=objects.InstancePCIRequests(requests=[]),
        power_state=0, project_id='project', ramdisk_id='',
        resources=None, root_device_name='/dev/vda', root_gb=1,
        services=objects.ServiceList(objects=[]),
        system_metadata={'image_hw_architecture': 'x86_64'},
        tags=objects.TagList(objects=[]), task_state=None,
        trusted_certs=None, user_id='user', vcpu_model=None, vcpus=1,
        vm_mode=None, vm_state='building')
