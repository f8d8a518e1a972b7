# SPDX-License-Identifier: Apache-2.0
"""The installed nova still is what the driver was written for."""

import inspect
import logging
import pathlib
from collections.abc import Iterator

import nova
import pytest
from nova import version as nova_version
from nova.virt.libvirt import driver as libvirt_driver

from tests.peers import seams
from virtlogd_driver import exception
from virtlogd_driver.compute import driver
from virtlogd_driver.compute import seams as running
from virtlogd_driver.node import release

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


def test_what_runs_is_called_as_its_source_says() -> None:
    assert running.first_change(RECORD.called(
        int(VERSION.split('.')[0]))) is None


def test_the_driver_is_told_of_the_newest_release() -> None:
    assert running.known() == RECORD.called(release.NEWEST)


class TestAnnounce:
    """What a nova gets whose version is this or that."""

    NEXT = f'{release.NEWEST + 1}.0.0'

    @pytest.fixture(autouse=True)
    def as_recorded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """This nova is the newest supported."""
        called = RECORD.called(int(VERSION.split('.')[0]))
        monkeypatch.setattr(running, 'known', lambda: called)

    def warnings(self, caplog: pytest.LogCaptureFixture) -> list[str]:
        return [r.getMessage() for r in caplog.records
                if r.levelno >= logging.WARNING]

    @pytest.mark.parametrize('version', [
        VERSION, f'{release.OLDEST}.0.0.0rc1', f'{release.NEWEST}.9.9'])
    def test_supported(self, version: str,
                       caplog: pytest.LogCaptureFixture) -> None:
        running.announce(version)
        assert self.warnings(caplog) == []

    @pytest.mark.parametrize('version', ['30.1.2', '9.0.0', '', 'unknown'])
    def test_too_old(self, version: str) -> None:
        with pytest.raises(exception.UnsupportedNova) as raised:
            running.announce(version)
        assert str(raised.value).startswith(f'nova {version} is too old')
        assert f'supports nova {release.supported()}: upgrade nova' in str(
            raised.value)
        assert '\n' not in str(raised.value)

    def test_newer_and_as_it_was(
            self, caplog: pytest.LogCaptureFixture) -> None:
        running.announce(self.NEXT)
        (warning,) = self.warnings(caplog)
        assert warning.startswith(
            f'nova {self.NEXT} is newer than {release.NEWEST}')

    @pytest.mark.parametrize(('seam', 'was', 'said'), [
        (f'{seams.BASE}.spawn', '(self, instance)',
         f'{seams.BASE}.spawn is called as (self, context, '),
        (f'{seams.BASE}.no_such_thing', '', 'no_such_thing is not there'),
        ('nova.no_such_module.thing', '', 'nova.no_such_module.thing is'),
        ('nova.conf.CONF', '(self)', 'is called as no function, not (self)'),
    ])
    def test_newer_and_not_as_it_was(
            self, seam: str, was: str, said: str,
            monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(running, 'known', lambda: {
            'nova.context.get_admin_context': '(read_deleted=)', seam: was})
        with pytest.raises(exception.UnsupportedNova) as raised:
            running.announce(self.NEXT)
        assert said in str(raised.value)
        assert 'install a virtlogd-driver that supports it' in str(
            raised.value)


@pytest.mark.parametrize(('function', 'expected'), [
    (lambda a, b=1, *c, d, e=2, **f: None, '(a, b=, *c, d:, e:=, **f)'),
    (property(lambda self: None), '(self)'),
    (classmethod(lambda cls, x: None), '(cls, x)'),
    (int, ''), (3, ''), (None, '')])
def test_signature(function: object, expected: str) -> None:
    assert running.signature(function) == expected
