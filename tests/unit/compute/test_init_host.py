# SPDX-License-Identifier: Apache-2.0
"""The driver starts."""

import contextlib
import errno
import os
import queue
import time

import fixtures
import libvirt
import pytest
from nova import exception as nova_exception
from nova import objects
from nova.virt.libvirt import utils as libvirt_utils

from tests.unit import fake_libvirt
from tests.unit.compute.given import (
    UUID,
    consoles,
    guest_xml,
    stage,
)
from tests.unit.history import staged
from virtlogd_driver.compute import histories
from virtlogd_driver.console_log import chain
from virtlogd_driver.history import history, outbox


def test_a_nova_that_is_too_old(make_driver) -> None:
    with fixtures.MonkeyPatch(
            'nova.version.version_string', lambda: '30.3.0'), pytest.raises(
            nova_exception.InternalError, match='too old for this'):
        make_driver()


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
        made = make_driver(guest_xml(fake_libvirt.serial(0, 10000)))
        with caplog.at_level('INFO'):
            made.init_host('host')
            made._consoles.capability()
        assert list(made._consoles.ports.held()) == [('127.0.0.1', 10000)]
        assert caplog.text.count('Guest consoles:') == 1

    @pytest.mark.parametrize(('text', 'held'), [
        (None, [10000]),
        (guest_xml(fake_libvirt.serial(0, 10000)
                   + fake_libvirt.serial(1, 10001)), [10000, 10001]),
        ('<domain', [10000])])
    def test_what_a_rescued_guest_gets_back_is_seeded(
            self, make_driver, directory, caplog, text, held) -> None:
        """nova starts it with the XML that it had before."""
        if text is not None:
            (directory / 'unrescue.xml').write_text(text)
        made = make_driver(guest_xml(fake_libvirt.serial(0, 10000)))
        made._adopt_guests()
        assert sorted(port for _, port in made._consoles.ports.held()) == held
        assert ('before it was rescued' in caplog.text) == (text == '<domain')

    def test_a_log_that_nova_itself_began_stays(
            self, make_driver, directory) -> None:
        """The host is upgraded under a guest that nova had rebooted."""
        (directory / 'console.log').write_bytes(b'now')
        stage(directory, b'then')
        made = make_driver(guest_xml(fake_libvirt.serial(
            log=str(directory / 'console.log'))))
        made._adopt_guests()
        assert (directory / 'console.log').read_bytes() == b'now'
        assert (directory / 'console.history').read_bytes() == b'then'

    def test_a_history_that_still_comes(self, make_driver, instance,
                                        directory, monkeypatch) -> None:
        """nova-compute was restarted meanwhile: it is copied again."""
        monkeypatch.setattr(histories, 'READ_WAIT', 60)
        chain.begin(str(directory / 'console.g1.log'))
        (directory / 'console.g1.log').write_bytes(b'now')
        stage(directory, b'then').unlink()
        made = make_driver(guest_xml(fake_libvirt.serial(
            log=str(directory / 'console.g1.log'))))
        made._adopt_guests()
        time.sleep(0.2)
        assert os.listdir(directory) == ['console.g1.log']
        stage(directory, b'then')
        assert made.get_console_output(None, instance) == b'thennow'
        made.cleanup_host('host')

    @pytest.mark.parametrize('broken', ['console.moving', ''])
    def test_a_broken_disk_holds_up_no_other_guest(
            self, make_driver, directory, monkeypatch, caplog,
            broken) -> None:
        """The directory of a guest that comes before it cannot be listed."""
        first = directory.with_name(UUID.replace('0', '1', 1))
        for path in (directory, first):
            path.mkdir(exist_ok=True)
            chain.begin(str(path / 'console.g1.log'))
            stage(path, b'then').unlink()
        aside = directory.with_name(f'{UUID}_console')
        aside.mkdir()
        (aside / 'console.log').write_bytes(b'before')
        listdir = os.listdir

        def fail(path: str) -> list[str]:
            if path == str(first / broken):
                raise OSError(errno.EIO, 'Input/output error', path)
            return listdir(path)
        monkeypatch.setattr(os, 'listdir', fail)
        made = make_driver()
        in_use = {path.name: ['console.g1.log']
                  for path in (first, directory)}
        monkeypatch.setattr(made._histories, '_here', list)
        made._histories.adopt(in_use)
        made._histories.stop()
        assert sorted(listdir(directory)) == ['console.g1.log', 'console.log']
        assert 'Input/output error' in caplog.text
        assert {said.instance['uuid'] for said in caplog.records} == {
            first.name}

    @pytest.mark.parametrize('locked', [False, True])
    @pytest.mark.parametrize('when', ['start', 'late', 'leaving'])
    def test_whose_it_is_is_said(self, make_driver, directory, monkeypatch,
                                 caplog, when, locked) -> None:
        """Also where nova has named no guest."""
        live = directory / 'console.g1.log'
        chain.begin(str(live))
        stage(directory, b'then')
        (directory / 'console.moving/history.0').write_bytes(bytes(4))
        made = make_driver(guest_xml(fake_libvirt.serial(log=str(live))))
        if locked:
            @contextlib.contextmanager
            def alone(*_):
                raise OSError(errno.EAGAIN, 'another has them')
                yield
            monkeypatch.setattr(history.History, 'alone', alone)
        if when == 'start':
            made._histories.receive_in_background(
                None, UUID, str(directory), [live.name])
            deadline = time.monotonic() + 60
            while not caplog.records and time.monotonic() < deadline:
                time.sleep(0.01)
            made._histories.stop()
        elif when == 'late':
            made._histories.look_around()
        else:
            made._source.left(UUID)
        assert bool(caplog.records) == (locked or when != 'leaving')
        assert {said.instance['uuid'] for said in caplog.records} <= {UUID}

    def test_nor_what_has_left(self, make_driver, directory,
                               monkeypatch) -> None:
        """No outbox waits for what cannot be looked at of another guest."""
        first = directory.with_name(
            f'{UUID.replace("0", "1", 1)}_resize')
        first.mkdir()
        left = outbox.make(str(directory), outbox.begin_departure(
            UUID, '192.0.2.7', 'other', str(directory), {}))
        listdir = os.listdir

        def fail(path: str) -> list[str]:
            if path == str(first):
                raise OSError(errno.EIO, 'Input/output error', path)
            return listdir(path)
        monkeypatch.setattr(os, 'listdir', fail)
        monkeypatch.setattr(
            objects.Instance, 'get_by_uuid', lambda *_: objects.Instance(
                uuid=UUID, host='here', task_state=None, deleted=True))
        make_driver()._histories.adopt({})
        assert not os.path.exists(left)

    @pytest.mark.parametrize('filled', [False, True])
    @pytest.mark.parametrize(('host', 'logs'), [
        ('far', []), ('near', ['console.g1.log'])])
    def test_logs_of_a_guest_elsewhere_stay(
            self, make_driver, directory, monkeypatch, host, logs,
            filled) -> None:
        """A host that shares the storage has not let it go yet, or has it
        again: virtlogd writes there. None does where it left for.
        """
        left = outbox.make(str(directory), outbox.begin_departure(
            UUID, '192.0.2.7', 'far', str(directory), {}))
        if filled:
            chain.begin(f'{left}/console.log')
        chain.begin(str(directory / 'console.g1.log'))
        monkeypatch.setattr(
            objects.Instance, 'get_by_uuid', lambda *_: objects.Instance(
                uuid=UUID, host=host, task_state=None, deleted=False))
        monkeypatch.setattr(
            objects.ComputeNode, 'get_first_node_by_host_for_old_compat',
            lambda *_: objects.ComputeNode(host_ip='192.0.2.8'))
        made = make_driver()
        sent: list[str] = []
        monkeypatch.setattr(made._histories, 'send', sent.append)
        made._histories.adopt({})
        assert os.listdir(directory) == logs
        assert sent == [left] * (filled or not logs)
        assert os.path.exists(left)

    @pytest.mark.parametrize('known', ['lives', 'deleted', 'unknown'])
    def test_a_history_that_never_left(self, make_driver, directory,
                                       monkeypatch, known) -> None:
        """An earlier version was killed while it was copied.

        A database that does not know the guest is no reason to remove it.
        """
        left = directory.with_name(f'{directory.name}_leaving.abc')
        left.mkdir()
        staged.as_old(left, {'console.g1.history': b'then'})
        found = objects.Instance(uuid=UUID, host='elsewhere',
                                 task_state=None, deleted=known == 'deleted')

        def find(context, _):
            assert context.read_deleted == 'yes'
            if known == 'unknown':
                raise nova_exception.InstanceNotFound(instance_id=UUID)
            return found
        monkeypatch.setattr(objects.Instance, 'get_by_uuid', find)
        monkeypatch.setattr(
            objects.ComputeNode, 'get_first_node_by_host_for_old_compat',
            lambda *_: objects.ComputeNode(host_ip='192.0.2.7'))
        copied = queue.Queue()

        def copy(source, target, host, receive, **_):
            if receive:
                raise OSError('there is nothing yet')
            copied.put((host, target, sorted(os.listdir(source))))
        monkeypatch.setattr(libvirt_utils, 'copy_image', copy)
        made = make_driver()
        made._adopt_guests()
        if known == 'deleted':
            assert not left.exists()
        elif known == 'unknown':
            (waits,) = outbox.waiting(str(directory.parent))
            assert waits.path == str(left)
            assert any(path.read_bytes() == b'then'
                       for path in left.rglob('*') if path.is_file())
            assert copied.empty()
        else:
            assert copied.get(timeout=60) == (
                '192.0.2.7', f'{directory}/', ['history.0', 'record.json'])
            assert (left / 'console.log').read_bytes() == b'then'
        made._histories.stop()

    def test_a_log_of_another_host_stays(self, make_driver, directory,
                                         here) -> None:
        """Evacuated while this host was lost, on shared storage."""
        here.clear()
        for name in ('console.g1.history', 'console.g1.log'):
            (directory / name).write_bytes(b'elsewhere')
        made = make_driver(guest_xml(fake_libvirt.serial(
            log=str(directory / 'console.log'))))
        made._adopt_guests()
        assert sorted(os.listdir(directory)) == [
            'console.g1.history', 'console.g1.log']

    def test_what_a_rebuild_that_was_cut_off_has_set_aside(
            self, make_driver, directory) -> None:
        aside = directory.with_name(f'{UUID}_console')
        aside.mkdir()
        stage(aside, b'then')
        made = make_driver(guest_xml(fake_libvirt.serial(
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

    @pytest.mark.parametrize('address', [
        '192.0.2.5', 'no-such-host.invalid'])
    def test_an_address_that_is_not_there_yet(
            self, make_driver, instance, conf, caplog, address) -> None:
        """As with nova's own driver it may come later, with the network."""
        conf.config(group='serial_console', proxyclient_address=address)
        made = make_driver()
        made.init_host('host')
        assert f'proxyclient_address = {address!r}' in caplog.text
        assert 'do not start' in caplog.text
        with pytest.raises(nova_exception.InvalidConfiguration,
                           match=rf'proxyclient_address.*{address}'):
            consoles(made, instance)
        conf.config(group='serial_console', proxyclient_address='127.0.0.1')
        (device,) = consoles(made, instance)
        assert device.address is not None
