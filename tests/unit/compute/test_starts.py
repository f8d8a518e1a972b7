# SPDX-License-Identifier: Apache-2.0
"""The driver acts before and after a guest starts."""

import contextlib

import pytest
from nova import exception as nova_exception
from nova import objects
from nova.compute import power_state
from nova.compute import utils as compute_utils
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import guest as libvirt_guest

from tests.unit import fake_libvirt
from tests.unit.compute.given import (
    UUID,
    guest_xml,
)
from virtlogd_driver import exception
from virtlogd_driver.console_log import reader
from virtlogd_driver.virtlogd import health, privileged


class TestStart:
    """What is asked of virtlogd before a guest is started."""

    @pytest.fixture(autouse=True)
    def nova_starts(self, monkeypatch):
        monkeypatch.setattr(libvirt_driver.LibvirtDriver, '_create_guest',
                            lambda *args: args[4:])
        monkeypatch.setattr(
            privileged, 'probe', lambda *_: (privileged.UP, '', ()))

    def _down(self, monkeypatch) -> None:
        def check_ready(*_: object, **__: object) -> None:
            raise exception.VirtlogdDown('it is down')
        monkeypatch.setattr(health, 'check_ready', check_ready)

    def _full(self, monkeypatch) -> None:
        def check_ready(*_: object, **__: object) -> None:
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
            make_driver()._create_guest(None, guest_xml(''), instance)

    def test_the_user_is_told_of_a_start_without_a_log(
            self, make_driver, instance, monkeypatch, told) -> None:
        self._full(monkeypatch)
        assert make_driver()._create_guest('context', guest_xml(''),
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
        assert make_driver()._create_guest('context', guest_xml(''),
                                           instance) == (True, False)

    def test_what_is_only_defined_needs_none(
            self, make_driver, instance, monkeypatch) -> None:
        self._down(monkeypatch)
        made = make_driver()
        assert made._create_guest(None, guest_xml(''), instance,
                                  power_on=False) == (False, False)
        assert made._starts._ends == {}

    def test_a_container_needs_none(self, make_driver, instance, conf,
                                    monkeypatch) -> None:
        self._down(monkeypatch)
        conf.config(group='libvirt', virt_type='lxc')
        assert make_driver()._create_guest(
            None, guest_xml(''), instance) == (True, False)

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
        made = make_driver(guest_xml(''))
        made._create_guest(None, guest_xml(''), instance)
        assert UUID in made._starts._ends
        made._undefine_domain(instance)
        assert made._starts._ends == {}


def test_a_soft_reboot_is_noted_before_the_guest_writes(
        make_driver, instance, directory, monkeypatch) -> None:
    """nova launches the domain by itself; its event comes when it comes."""
    log = directory / 'console.log'
    log.write_bytes(b'first')
    monkeypatch.setattr(health, 'wait_until_closed', lambda *_: True)
    made = make_driver(guest_xml(fake_libvirt.serial(log=str(log))))
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
