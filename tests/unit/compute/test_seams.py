# SPDX-License-Identifier: Apache-2.0
"""Whether the installed nova still is what the driver was written for."""

import inspect
import pathlib
from collections.abc import Iterator

import nova
import pytest
from nova import version as nova_version
from nova.virt.libvirt import driver as libvirt_driver

from tests.peers import seams
from virtlogd_driver.compute import driver

ROOT = pathlib.Path(__file__).parents[3]
DRIVER = seams.driver_source(ROOT)
RECORD = seams.Record.load(ROOT / 'tests/peers/seams.json')
VERSION = nova_version.version_string()
READ = seams.installed(pathlib.Path(nova.__path__[0]).parent)
FOUND = seams.seams(DRIVER, READ)


def test_nothing_has_moved() -> None:
    changes = RECORD.changes(VERSION, FOUND)
    assert not changes, '\n'.join(changes.values())


def _edited(old: str, new: str) -> dict[str, str]:
    """What is told of a nova whose libvirt driver reads otherwise."""
    def read(path: str) -> str | None:
        text = READ(path)
        if text is not None and path == 'nova/virt/libvirt/driver.py':
            assert old in text
            return text.replace(old, new)
        return text
    found = seams.seams(DRIVER, read)
    return {name.rpartition('.')[2]: change for name, change
            in RECORD.changes('34.9.9', found).items()
            if change not in RECORD.changes('34.9.9', FOUND).values()}


def test_a_changed_signature_is_told() -> None:
    changes = _edited('def _create_consoles(self, guest_cfg,',
                      'def _create_consoles(self, cfg, guest_cfg,')
    assert 'is (self, cfg, guest_cfg, ' in changes['_create_consoles']


def test_a_changed_body_is_told() -> None:
    changes = _edited('def get_serial_console(self, context, instance):\n',
                      'def get_serial_console(self, context, instance):\n'
                      '        pass\n')
    assert 'has another body' in changes['get_serial_console']


def test_a_method_that_is_gone_is_told() -> None:
    changes = _edited('def _create_consoles(', 'def _make_consoles(')
    assert 'is not there' in changes['_create_consoles']


def test_what_the_driver_uses_is_found() -> None:
    """By its source alone; a few that are reached in different ways."""
    assert {f'{seams.BASE}._create_consoles', f'{seams.BASE}._host',
            f'{seams.BASE}._check_emulation_arch', 'nova.conf.CONF',
            'nova.virt.libvirt.config.LibvirtConfigGuestSerial',
            'nova.virt.libvirt.utils.get_instance_path',
            } <= set(FOUND)


OVERRIDES = sorted(
    name for name, value in vars(driver.VirtlogdDriver).items()
    if inspect.isfunction(value) and name != '__init__'
    and hasattr(libvirt_driver.LibvirtDriver, name))


@pytest.mark.parametrize('name', OVERRIDES)
def test_an_override_takes_every_call_that_novas_takes(name: str) -> None:
    ours = inspect.signature(vars(driver.VirtlogdDriver)[name])
    novas = inspect.signature(getattr(libvirt_driver.LibvirtDriver, name))
    for args, kwargs in _calls(novas):
        ours.bind(*args, **kwargs)
        bound = ours.bind(*args, **kwargs).arguments
        for parameter, value in bound.items():
            if isinstance(value, str):
                assert value == parameter


def _calls(signature: inspect.Signature
           ) -> Iterator[tuple[list[str], dict[str, str]]]:
    """With and without what is optional, by position and by name."""
    parameters = list(signature.parameters.values())
    required = [p.name for p in parameters if p.default is p.empty]
    every = [p.name for p in parameters]
    for names in (required, every):
        yield names, {}
        yield names[:1], {name: name for name in names[1:]}
