# SPDX-License-Identifier: Apache-2.0
"""Tests of the driver get guests, images and flavors here."""

import uuid

from nova import objects
from nova.virt.libvirt import config as vconfig

from tests.unit import fake_libvirt
from tests.unit.history import staged
from virtlogd_driver.compute import driver
from virtlogd_driver.guest import char_device

objects.register_all()

UUID = str(uuid.UUID(int=7))


def guest_xml(devices: str) -> str:
    return fake_libvirt.domain_xml(devices, guest_uuid=UUID)


def image_of(**properties: object) -> objects.ImageMeta:
    return objects.ImageMeta.from_dict(
        {'properties': {'hw_architecture': 'x86_64', **properties}})


def flavor_of(**extra_specs: str) -> objects.Flavor:
    return objects.Flavor(extra_specs=extra_specs)


def consoles(made: driver.VirtlogdDriver, instance: objects.Instance,
             flavor: objects.Flavor | None = None,
             image: objects.ImageMeta | None = None
             ) -> tuple[char_device.CharDevice, ...]:
    """What nova would write into the guest's XML."""
    config = vconfig.LibvirtConfigGuest()
    config.virt_type = 'qemu'
    made._create_consoles(config, instance, flavor or flavor_of(),
                          image or image_of())
    return char_device.parse(config.to_xml())


def libvirt_fails(code: int):
    """A function that fails as libvirt does, with this code."""
    def raising(*_: object) -> None:
        raise fake_libvirt.real_error(code)
    return raising


def stage(directory, history):
    """What a guest has written, as it comes from another host.

    :returns: path of the record, without which nothing is put in place
    """
    return staged.as_now(directory, {0: history})


def leave(made: driver.VirtlogdDriver, instance: objects.Instance) -> None:
    instance.numa_topology = None
    made.post_live_migration_at_source(None, instance, [])
