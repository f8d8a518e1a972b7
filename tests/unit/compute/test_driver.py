# SPDX-License-Identifier: Apache-2.0
"""The driver: nova's own classes over libvirt's test driver."""

import contextlib
import os
import pathlib
import time
import types
import uuid

import fixtures
import libvirt
import nova.conf
import pytest
from lxml import etree
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova.compute import power_state, task_states
from nova.compute import utils as compute_utils
from nova.scheduler.client import report
from nova.virt import event as virtevent
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt import utils as libvirt_utils
from oslo_config import fixture as config_fixture

from tests.unit import fake_libvirt
from virtlogd_driver import exception
from virtlogd_driver.compute import driver, live_migration
from virtlogd_driver.console_log import chain, reader
from virtlogd_driver.guest import char_device
from virtlogd_driver.history import transfer
from virtlogd_driver.virtlogd import health, privileged

objects.register_all()

UUID = str(uuid.UUID(int=7))


@pytest.fixture(autouse=True)
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
def here(monkeypatch) -> list[str]:
    """The servers that nova has on this host."""
    uuids = [UUID]
    monkeypatch.setattr(objects.InstanceList, 'get_uuids_by_host',
                        lambda *_: uuids)
    return uuids


@pytest.fixture
def make_driver():
    with fixtures.Fixture() as cleanup:
        def make(*domains: str, **versions: int) -> driver.VirtlogdDriver:
            fake = cleanup.useFixture(
                fake_libvirt.FakeLibvirt(*domains, **versions))
            made = driver.VirtlogdDriver(None)
            made._host.get_connection = lambda: fake.connection
            made.connection = fake.connection
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


def _guest(devices: str) -> str:
    return fake_libvirt.domain_xml(devices, guest_uuid=UUID)


def _image(**properties: object) -> objects.ImageMeta:
    return objects.ImageMeta.from_dict(
        {'properties': {'hw_architecture': 'x86_64', **properties}})


def _flavor(**extra_specs: str) -> objects.Flavor:
    return objects.Flavor(extra_specs=extra_specs)


def _consoles(made: driver.VirtlogdDriver, instance: objects.Instance,
              flavor: objects.Flavor | None = None,
              image: objects.ImageMeta | None = None
              ) -> tuple[char_device.CharDevice, ...]:
    """What nova would write into the guest's XML."""
    config = vconfig.LibvirtConfigGuest()
    config.virt_type = 'qemu'
    made._create_consoles(config, instance, flavor or _flavor(),
                          image or _image())
    return char_device.parse(config.to_xml())


def test_a_nova_that_is_too_old(make_driver) -> None:
    with fixtures.MonkeyPatch(
            'nova.version.version_string', lambda: '30.3.0'), pytest.raises(
            nova_exception.InternalError, match='too old for this'):
        make_driver()


class TestWhatAGuestGets:

    def test_capable(self, make_driver, instance, directory) -> None:
        (device,) = _consoles(make_driver(), instance)
        assert device.address == ('127.0.0.1', 10000)
        assert device.log == char_device.Log(
            str(directory / 'console.log'), append=True)

    def test_ports_of_flavor_and_image(self, make_driver, instance,
                                       directory) -> None:
        flavor = _flavor(**{'hw:serial_port_count': '4'})
        made = make_driver()
        assert len(_consoles(made, instance, flavor)) == 4
        devices = _consoles(made, instance, flavor,
                            _image(hw_serial_port_count=2))
        assert [d.log_file for d in devices] == [
            str(directory / 'console.log'),
            str(directory / 'console.port1.log')]

    def test_too_many_ports(self, make_driver, instance) -> None:
        with pytest.raises(nova_exception.SerialPortNumberLimitExceeded,
                           match=r'has 1 to 4.*hw:serial_port_count'):
            _consoles(make_driver(), instance,
                      image=_image(hw_serial_port_count=5))

    def test_too_many_ports_is_said_before_anything_is_made(
            self, make_driver, instance, tmp_path) -> None:
        instance.flavor = _flavor(**{'hw:serial_port_count': '5'})
        with pytest.raises(nova_exception.SerialPortNumberLimitExceeded):
            make_driver().spawn(None, instance, _image(), [], None, {})
        assert not (tmp_path / UUID).exists()

    def test_a_guest_that_is_still_defined_gets_its_ports(
            self, make_driver, instance) -> None:
        """Rescue, same-host resize, reverted migration: nova gives none."""
        made = make_driver(_guest(fake_libvirt.serial(0, 10005)))
        made._adopt_guests()
        (device,) = _consoles(made, instance)
        assert device.address == ('127.0.0.1', 10005)

    @pytest.mark.parametrize(('fallback', 'type_'), [
        ('file', 'file'), ('tcp', 'tcp')])
    def test_old_host(self, make_driver, instance, conf, fallback,
                      type_) -> None:
        conf.config(group='virtlogd', fallback_device=fallback)
        (device,) = _consoles(make_driver(qemu_version=2_006_000), instance)
        assert (device.type, device.log) == (type_, None)

    def test_stdio_handler(self, make_driver, instance, tmp_path) -> None:
        (tmp_path / 'qemu.conf').write_text('stdio_handler = "file"\n')
        (device,) = _consoles(make_driver(), instance)
        assert device.type == 'file'

    def test_without_serial_consoles(self, make_driver, instance,
                                     conf) -> None:
        conf.config(group='serial_console', enabled=False)
        (device,) = _consoles(make_driver(), instance)
        assert device.type == 'pty'
        assert device.log.append

    def test_ipv6(self, make_driver, instance, conf) -> None:
        conf.config(group='serial_console', proxyclient_address='::1')
        (device,) = _consoles(make_driver(), instance)
        assert device.address == ('::1', 10000)

    def test_range_exhausted(self, make_driver, instance, conf) -> None:
        conf.config(group='serial_console', port_range='10000:10000')
        made = make_driver()
        _consoles(made, objects.Instance(uuid=str(uuid.uuid4()), id=8))
        with pytest.raises(nova_exception.SocketPortRangeExhaustedException,
                           match='10000:10000'):
            _consoles(made, instance)

    def test_parallels_has_none(self, make_driver, instance, conf) -> None:
        conf.config(group='libvirt', virt_type='parallels')
        assert _consoles(make_driver(), instance) == ()

    def test_nova_sees_the_attributes_of_its_own_class(
            self, make_driver, instance, directory) -> None:
        config = vconfig.LibvirtConfigGuest()
        make_driver()._create_consoles(config, instance, _flavor(), _image())
        (device,) = config.devices
        assert isinstance(device, vconfig.LibvirtConfigGuestSerial)
        assert (device.type, device.listen_host, device.listen_port,
                device.log.file, device.log.append) == (
            'tcp', '127.0.0.1', 10000, str(directory / 'console.log'), 'on')


class TestPorts:

    def test_held_until_undefined(self, make_driver, instance,
                                  directory) -> None:
        made = make_driver(_guest(fake_libvirt.serial(0, 10000)))
        made._adopt_guests()
        made._undefine_domain(instance)
        made._undefine_domain(instance)
        assert made._consoles.ports.held() == {}

    def test_a_guest_with_xml_that_is_not_understood(
            self, make_driver, caplog) -> None:
        made = make_driver(_guest(fake_libvirt.serial(0, 10000)))
        domains = made.connection.listAllDomains()

        class Broken:
            def __getattr__(self, name: str) -> object:
                return getattr(domains[0], name)

            def XMLDesc(self) -> str:
                return '<domain'

        made.connection.listAllDomains = lambda: [Broken(), *domains]
        made._adopt_guests()
        assert list(made._consoles.ports.held()) == [('127.0.0.1', 10000)]
        assert 'not well-formed' in caplog.text


def _stage(directory, history) -> None:
    """What a guest has written, as it comes from another host."""
    here = directory / 'console.log'
    transfer.stage(
        [(str(here), str(directory / 'console.g1.log'))], str(directory), 99,
        lambda *_: history, lambda *_: None)


class TestInitHost:

    @pytest.fixture(autouse=True)
    def nova_part(self):
        """nova's own start-up is not what is tested here."""
        with fixtures.MonkeyPatch(
                'nova.virt.libvirt.driver.LibvirtDriver.init_host',
                lambda *_: None):
            yield

    def test_ports_are_seeded_and_the_capability_is_said_once(
            self, make_driver, caplog) -> None:
        made = make_driver(_guest(fake_libvirt.serial(0, 10000)))
        with caplog.at_level('INFO'):
            made.init_host('host')
            made._consoles.capability()
        assert list(made._consoles.ports.held()) == [('127.0.0.1', 10000)]
        assert caplog.text.count('Guest consoles:') == 1

    def test_a_log_that_nova_itself_began_stays(
            self, make_driver, directory) -> None:
        """The host is upgraded under a guest that nova had rebooted."""
        (directory / 'console.log').write_bytes(b'now')
        _stage(directory, b'then')
        made = make_driver(_guest(fake_libvirt.serial(
            log=str(directory / 'console.log'))))
        made._adopt_guests()
        assert (directory / 'console.log').read_bytes() == b'now'
        assert (directory / 'console.history').read_bytes() == b'then'

    def test_a_history_that_still_comes(self, make_driver, instance,
                                        directory) -> None:
        """nova-compute was restarted meanwhile."""
        chain.begin(str(directory / 'console.g1.log'))
        (directory / 'console.g1.log').write_bytes(b'now')
        _stage(directory, b'then')
        (listed,) = (directory / 'console.moving').glob('console.staged.*')
        listed.rename(directory / 'not come yet')
        made = make_driver(_guest(fake_libvirt.serial(
            log=str(directory / 'console.g1.log'))))
        made._adopt_guests()
        time.sleep(0.2)
        assert not (directory / 'console.g1.history').exists()
        (directory / 'not come yet').rename(listed)
        assert made.get_console_output(None, instance) == b'thennow'
        made.cleanup_host('host')

    def test_a_history_that_never_left(self, make_driver, directory,
                                       caplog) -> None:
        """nova-compute was killed while it was copied."""
        left = directory.with_name(f'{directory.name}_leaving.abc')
        left.mkdir()
        make_driver()._adopt_guests()
        (said,) = caplog.messages
        assert str(left) in said
        assert left.exists()

    def test_a_log_of_another_host_stays(self, make_driver, directory,
                                         here) -> None:
        """Evacuated while this host was lost, on shared storage."""
        here.clear()
        for name in ('console.g1.history', 'console.g1.log'):
            (directory / name).write_bytes(b'elsewhere')
        made = make_driver(_guest(fake_libvirt.serial(
            log=str(directory / 'console.log'))))
        made._adopt_guests()
        assert sorted(os.listdir(directory)) == [
            'console.g1.history', 'console.g1.log']

    def test_what_a_rebuild_that_was_cut_off_has_set_aside(
            self, make_driver, directory) -> None:
        aside = directory.with_name(f'{UUID}_console')
        aside.mkdir()
        _stage(aside, b'then')
        made = make_driver(_guest(fake_libvirt.serial(
            log=str(directory / 'console.g1.log'))))
        made._adopt_guests()
        assert (directory / 'console.g1.history').read_bytes() == b'then'
        assert not aside.exists()

    def test_decided_again_when_versions_change(self, make_driver,
                                                caplog) -> None:
        made = make_driver(libvirt_version=1_003_002)
        made.init_host('host')
        assert 'libvirt 1.3.2 is older than 1.3.3' in caplog.text
        made.connection.libvirt_version = 9_000_000
        assert made._consoles.capability().capable

    def test_no_connection_is_not_too_old(self, make_driver,
                                          instance) -> None:
        made = make_driver()
        made.connection.error = fake_libvirt.real_error(
            libvirt.VIR_ERR_SYSTEM_ERROR)
        with pytest.raises(nova_exception.HypervisorUnavailable,
                           match='libvirtd'):
            made.init_host('host')

    @pytest.mark.parametrize('text', ['20000:10000', '0:1', '1:70000'])
    def test_bad_port_range(self, make_driver, conf, text) -> None:
        conf.config(group='serial_console', port_range=text)
        with pytest.raises(nova_exception.InvalidConfiguration) as raised:
            make_driver()
        assert '[serial_console] port_range' in str(raised.value)
        assert text in str(raised.value)

    def test_bad_address(self, make_driver, conf) -> None:
        conf.config(group='serial_console',
                    proxyclient_address='no-such-host.invalid')
        with pytest.raises(nova_exception.InvalidConfiguration,
                           match=r'proxyclient_address.*no-such-host'):
            make_driver().init_host('host')


def _leave(made: driver.VirtlogdDriver, instance: objects.Instance) -> None:
    instance.numa_topology = None
    made.post_live_migration_at_source(None, instance, [])


class TestStart:
    """What is asked of virtlogd before a guest is started."""

    @pytest.fixture(autouse=True)
    def nova_starts(self, monkeypatch):
        monkeypatch.setattr(libvirt_driver.LibvirtDriver, '_create_guest',
                            lambda *args: args[4:])
        monkeypatch.setattr(
            privileged, 'probe', lambda *_: (privileged.UP, '', ()))

    def _down(self, monkeypatch) -> None:
        def check_ready(*_: object) -> None:
            raise exception.VirtlogdDown('it is down')
        monkeypatch.setattr(health, 'check_ready', check_ready)

    def _full(self, monkeypatch) -> None:
        def check_ready(*_: object) -> None:
            raise exception.LogDiskFull('no room')
        monkeypatch.setattr(health, 'check_ready', check_ready)

    @pytest.fixture
    def told(self, monkeypatch) -> list[object]:
        """Events of the action, as nova is given them."""
        found: list[object] = []

        class Events:
            @staticmethod
            def event_start(context, instance, name, **_: object) -> None:
                found.append((context, name, instance))

            @staticmethod
            def event_finish_with_failure(*_: object, exc_val, **__: object
                                          ) -> None:
                found.append(str(exc_val))
        monkeypatch.setattr(objects, 'InstanceActionEvent', Events)
        return found

    def test_down(self, make_driver, instance, monkeypatch) -> None:
        self._down(monkeypatch)
        with pytest.raises(nova_exception.InternalError, match='it is down'):
            make_driver()._create_guest(None, _guest(''), instance)

    def test_the_user_is_told_of_a_start_without_a_log(
            self, make_driver, instance, monkeypatch, told) -> None:
        self._full(monkeypatch)
        assert make_driver()._create_guest('context', _guest(''),
                                           instance) == (True, False)
        assert told == [('context', 'compute_console_log_disk_full', UUID),
                        'no room']

    @pytest.mark.parametrize('kind', ['SOFT', 'HARD'])
    def test_the_user_is_told_of_a_reboot_that_is_refused(
            self, make_driver, instance, monkeypatch, told, kind) -> None:
        """nova says nothing of it while the guest runs."""
        self._down(monkeypatch)
        with pytest.raises(nova_exception.InternalError):
            make_driver().reboot('context', instance, None, kind)
        assert told == [('context', 'compute_virtlogd_down', UUID),
                        'it is down']

    @pytest.mark.parametrize('error', [
        nova_exception.InstanceActionNotFound(
            request_id='r', instance_uuid=UUID), OSError('no conductor')])
    @pytest.mark.parametrize('when', ['__enter__', '__exit__'])
    def test_a_start_that_cannot_be_told_of_is_made(
            self, make_driver, instance, monkeypatch, told, when,
            error) -> None:
        self._full(monkeypatch)

        def fail(*_: object) -> None:
            raise error
        monkeypatch.setattr(compute_utils.EventReporter, when, fail)
        assert make_driver()._create_guest('context', _guest(''),
                                           instance) == (True, False)

    def test_what_is_only_defined_needs_none(
            self, make_driver, instance, monkeypatch) -> None:
        self._down(monkeypatch)
        made = make_driver()
        assert made._create_guest(None, _guest(''), instance,
                                  power_on=False) == (False, False)
        assert made._starts._ends == {}

    def test_a_container_needs_none(self, make_driver, instance, conf,
                                    monkeypatch) -> None:
        self._down(monkeypatch)
        conf.config(group='libvirt', virt_type='lxc')
        assert make_driver()._create_guest(
            None, _guest(''), instance) == (True, False)

    @pytest.mark.parametrize('live', [False, True])
    def test_a_snapshot_needs_it_if_the_guest_is_suspended(
            self, make_driver, instance, monkeypatch, live) -> None:
        self._down(monkeypatch)
        suspended = []
        monkeypatch.setattr(
            libvirt_driver.LibvirtDriver, '_suspend_guest_for_snapshot',
            lambda *_: suspended.append(True))
        made = make_driver()
        with contextlib.ExitStack() as stack:
            if not live:
                stack.enter_context(pytest.raises(
                    nova_exception.InternalError, match='it is down'))
            made._suspend_guest_for_snapshot(
                None, live, power_state.RUNNING, instance)
        assert suspended == [True] * live

    def test_one_that_fails_leaves_nothing(
            self, make_driver, instance, monkeypatch) -> None:
        made = make_driver(_guest(''))
        made._create_guest(None, _guest(''), instance)
        assert UUID in made._starts._ends
        made._undefine_domain(instance)
        assert made._starts._ends == {}


def test_a_soft_reboot_is_noted_before_the_guest_writes(
        make_driver, instance, directory, monkeypatch) -> None:
    """nova launches the domain by itself; its event comes when it comes."""
    log = directory / 'console.log'
    log.write_bytes(b'first')
    monkeypatch.setattr(health, 'wait_until_closed', lambda *_: True)
    made = make_driver(_guest(fake_libvirt.serial(log=str(log))))
    done = []

    def soft_reboot(self, instance) -> bool:
        guest = self._host.get_guest(instance)
        assert guest.uuid == UUID
        guest.launch()
        return self._consoles.capability().capable

    def launch(self, pause=False) -> None:
        done.append(made._starts._ends[UUID][0])
        with log.open('ab') as out:
            out.write(b'second')
    monkeypatch.setattr(
        libvirt_driver.LibvirtDriver, '_soft_reboot', soft_reboot)
    monkeypatch.setattr(libvirt_guest.Guest, 'launch', launch)
    assert made._soft_reboot(instance)
    since = reader.read_from(str(log), done[0], 100)
    assert (since.data, since.missed) == (b'second', 0)


class TestCleanup:

    @pytest.fixture
    def cleanup(self, make_driver, instance, directory, monkeypatch):
        """What of the guest is copied, and where to, when nova cleans up."""
        copied = []

        def copy(source, target, host, on_execute, on_completion, **_):
            copied.append((
                host, pathlib.Path(target), sorted(os.listdir(source))))
        monkeypatch.setattr(libvirt_utils, 'copy_image', copy)
        monkeypatch.setattr(libvirt_driver.LibvirtDriver, 'cleanup',
                            lambda *_: None)
        monkeypatch.setattr(
            privileged, 'probe', lambda *_: (privileged.UP, '', ()))

        def run(task_state, destroy_disks=True, cross_cell=False,
                evacuations=0):
            monkeypatch.setattr(
                objects.MigrationList, 'get_by_filters',
                lambda *_: [objects.Migration()] * evacuations)
            monkeypatch.setattr(
                objects.Migration, 'get_by_instance_and_status',
                lambda *_: objects.Migration(
                    source_compute='source', cross_cell_move=cross_cell))
            instance.task_state = task_state
            (directory / 'console.log').write_bytes(b'x')
            made = make_driver()
            made.cleanup(nova_context.get_admin_context(), instance, [], None,
                         destroy_disks)
            return [(host, target, len(files))
                    for host, target, files in copied]
        return run

    @pytest.mark.parametrize('destroy_disks', [True, False],
                             ids=['own disks', 'shared block storage'])
    def test_a_revert_sends_it_back(self, cleanup, directory,
                                    destroy_disks) -> None:
        there = directory.with_name(f'{UUID}_resize')
        assert cleanup(task_states.RESIZE_REVERTING, destroy_disks) == [
            ('source', there, 2)]
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
        assert cleanup(task_states.REBUILDING) == []
        assert sorted(os.listdir(directory)) == ['console.g1.history']
        assert not directory.with_name(f'{UUID}_console').exists()

    def test_just_evacuated(self, cleanup, directory) -> None:
        """The host was lost, and is back: its files are to go."""
        assert cleanup(task_states.REBUILDING, evacuations=1) == []
        assert os.listdir(directory) == ['console.log']

    def test_deleted_after_a_rebuild_that_was_cut_off(
            self, cleanup, directory) -> None:
        directory.with_name(f'{UUID}_console').mkdir()
        assert cleanup(task_states.DELETING) == []
        assert not directory.with_name(f'{UUID}_console').exists()


class TestConsoleOutput:

    def _read(self, made, instance) -> bytes:
        return made.get_console_output(None, instance)

    def test_log_of_the_domain(self, make_driver, instance, directory,
                               conf) -> None:
        (directory / 'console.log').write_bytes(b'new\n')
        (directory / 'console.log.0').write_bytes(b'old\xff\n')
        conf.config(group='virtlogd', max_console_bytes=7)
        made = make_driver(_guest(fake_libvirt.serial(
            log=str(directory / 'console.log'))))
        assert self._read(made, instance) == b'd\xff\nnew\n'[-7:]

    def test_where_the_log_is_is_asked_once(
            self, make_driver, instance, directory) -> None:
        """And a libvirt that does not answer keeps nobody from reading."""
        (directory / 'console.log').write_bytes(b'x')
        made = make_driver(_guest(fake_libvirt.serial(
            log=str(directory / 'console.log'))))
        assert self._read(made, instance) == b'x'
        made.connection.error = fake_libvirt.real_error(
            libvirt.VIR_ERR_SYSTEM_ERROR)
        assert self._read(made, instance) == b'x'

    @pytest.mark.parametrize('happens', [
        lambda made, instance: made.emit_event(virtevent.LifecycleEvent(
            UUID, virtevent.EVENT_LIFECYCLE_STOPPED)),
        lambda made, instance: made._undefine_domain(instance),
        _leave,
    ], ids=['event', 'undefined', 'left'])
    def test_after_a_change_it_is_asked_again(
            self, make_driver, instance, directory, happens) -> None:
        (directory / 'console.log').write_bytes(b'x')
        (directory / 'console.g1.log').write_bytes(b'y')
        domain_xml = _guest(fake_libvirt.serial(
            log=str(directory / 'console.log')))
        made = make_driver(domain_xml)
        assert self._read(made, instance) == b'x'
        happens(made, instance)
        made.connection.defineXML(domain_xml.replace('console.log',
                                                     'console.g1.log'))
        made.connection.lookupByUUIDString(UUID).destroy()
        assert self._read(made, instance) == b'y'

    def test_a_log_that_is_gone_is_looked_for_again(
            self, make_driver, instance, directory) -> None:
        (directory / 'console.log').write_bytes(b'x')
        made = make_driver(_guest(fake_libvirt.serial(
            log=str(directory / 'console.log'))))
        assert self._read(made, instance) == b'x'
        domain = made.connection.lookupByUUIDString(UUID)
        domain.destroy()
        domain.undefine()
        (directory / 'console.log').rename(directory / 'console.g1.log')
        assert self._read(made, instance) == b''
        assert self._read(made, instance) == b'x'

    def test_stopped_guest(self, make_driver, instance, directory) -> None:
        (directory / 'console.log').write_bytes(b'panic\n')
        made = make_driver(_guest(fake_libvirt.serial(
            log=str(directory / 'console.log'))))
        made.connection.lookupByUUIDString(UUID).destroy()
        assert self._read(made, instance) == b'panic\n'

    def test_no_domain_but_a_log(self, make_driver, instance,
                                 directory) -> None:
        (directory / 'console.log').write_bytes(b'panic\n')
        assert self._read(make_driver(), instance) == b'panic\n'

    def test_domain_gone_between_two_calls(self, make_driver, instance,
                                           directory) -> None:
        (directory / 'console.log').write_bytes(b'panic\n')
        made = make_driver(_guest(fake_libvirt.serial()))
        guest = made._host.get_guest(instance)
        guest.get_xml_desc = _raise(libvirt.VIR_ERR_NO_DOMAIN)
        made._host.get_guest = lambda _: guest
        assert self._read(made, instance) == b'panic\n'

    def test_file_device(self, make_driver, instance, directory) -> None:
        (directory / 'elsewhere').write_bytes(b'x\n')
        made = make_driver(_guest(
            f"<serial type='file'><source path='{directory}/elsewhere'/>"
            "</serial>"))
        assert self._read(made, instance) == b'x\n'

    def test_a_pty_without_log_is_read_where_its_log_would_be(
            self, make_driver, instance, directory) -> None:
        """The pty itself is never read: that steals from its viewer."""
        (directory / 'console.log').write_bytes(b'x\n')
        made = make_driver(_guest("<serial type='pty'/>"))
        assert self._read(made, instance) == b'x\n'

    def test_nothing_written_yet(self, make_driver, instance,
                                 directory) -> None:
        made = make_driver(_guest(fake_libvirt.serial(
            log=str(directory / 'console.log'))))
        assert self._read(made, instance) == b''

    @pytest.mark.parametrize('devices', [
        '', fake_libvirt.serial(log=None)], ids=['no serial', 'no log'])
    def test_no_log_at_all(self, make_driver, instance, devices) -> None:
        with pytest.raises(nova_exception.ConsoleNotAvailable):
            self._read(make_driver(_guest(devices)), instance)

    def test_a_log_that_is_a_link_is_not_followed(
            self, make_driver, instance, directory, caplog) -> None:
        (directory / 'secret').write_bytes(b'secret')
        os.symlink(directory / 'secret', directory / 'console.log')
        made = make_driver(_guest(fake_libvirt.serial(
            log=str(directory / 'console.log'))))
        with pytest.raises(nova_exception.ConsoleNotAvailable) as raised:
            self._read(made, instance)
        assert str(directory) not in str(raised.value)
        assert 'console.log' in caplog.text

    def test_libvirt_is_down(self, make_driver, instance) -> None:
        made = make_driver(_guest(fake_libvirt.serial()))
        guest = made._host.get_guest(instance)
        guest.get_xml_desc = _raise(libvirt.VIR_ERR_SYSTEM_ERROR)
        made._host.get_guest = lambda _: guest
        with pytest.raises(nova_exception.HypervisorUnavailable):
            self._read(made, instance)

    def test_malformed_xml(self, make_driver, instance) -> None:
        made = make_driver(_guest(fake_libvirt.serial()))
        guest = made._host.get_guest(instance)
        guest.get_xml_desc = lambda: '<domain'
        made._host.get_guest = lambda _: guest
        with pytest.raises(nova_exception.InternalError,
                           match='not well-formed'):
            self._read(made, instance)


def _raise(code: int):
    def raising(*_: object) -> None:
        raise fake_libvirt.real_error(code)
    return raising


class TestSerialConsole:

    def test_first_port(self, make_driver, instance) -> None:
        made = make_driver(_guest(
            fake_libvirt.serial(1, 10001) + fake_libvirt.serial(0, 10000)))
        console = made.get_serial_console(None, instance)
        assert (console.host, console.port) == ('127.0.0.1', 10000)
        assert console.get_connection_info('t', 'u')['port'] == 10000

    def test_fallback_says_why(self, make_driver, instance, conf,
                               caplog) -> None:
        made = make_driver(
            _guest("<serial type='file'><source path='/l'/></serial>"),
            libvirt_version=1_002_000)
        made._consoles.capability()
        with caplog.at_level('INFO'), pytest.raises(
                nova_exception.ConsoleTypeUnavailable):
            made.get_serial_console(None, instance)
        assert 'libvirt 1.2.0 is older than 1.3.3' in caplog.text

    def test_no_guest(self, make_driver, instance) -> None:
        with pytest.raises(nova_exception.InstanceNotFound):
            make_driver().get_serial_console(None, instance)


def test_written_as_the_plan_has_it(make_driver, instance) -> None:
    """nova's own class would leave out append of a file."""
    config = vconfig.LibvirtConfigGuest()
    config.virt_type = 'qemu'
    made = make_driver(libvirt_version=1_003_002)
    made._create_consoles(config, instance, _flavor(), _image())
    source = etree.fromstring(config.to_xml()).find('.//serial/source')
    assert source.get('append') == 'on'


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
        instance.flavor = _flavor()
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
