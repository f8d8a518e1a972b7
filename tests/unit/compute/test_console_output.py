# SPDX-License-Identifier: Apache-2.0
"""The driver gives nova the console log of a guest."""

import math
import os
import threading

import libvirt
import pytest
from nova import exception as nova_exception
from nova.virt import event as virtevent

from tests.unit import descriptors, fake_libvirt
from tests.unit.compute.given import UUID, guest_xml, leave, libvirt_fails
from virtlogd_driver.compute import histories
from virtlogd_driver.virtlogd.disk import Disks


class TestConsoleOutput:

    def _read(self, made, instance) -> bytes:
        return made.get_console_output(None, instance)

    def test_log_of_the_domain(self, make_driver, instance, directory,
                               conf) -> None:
        (directory / 'console.log').write_bytes(b'new\n')
        (directory / 'console.log.0').write_bytes(b'old\xff\n')
        conf.config(group='virtlogd', max_console_bytes=7)
        made = make_driver(guest_xml(fake_libvirt.serial(
            log=str(directory / 'console.log'))))
        assert self._read(made, instance) == b'd\xff\nnew\n'[-7:]

    def test_where_the_log_is_is_asked_once(
            self, make_driver, instance, directory) -> None:
        """And a libvirt that does not answer keeps nobody from reading."""
        (directory / 'console.log').write_bytes(b'x')
        made = make_driver(guest_xml(fake_libvirt.serial(
            log=str(directory / 'console.log'))))
        assert self._read(made, instance) == b'x'
        made.connection.error = fake_libvirt.real_error(
            libvirt.VIR_ERR_SYSTEM_ERROR)
        assert self._read(made, instance) == b'x'

    @pytest.mark.parametrize('happens', [
        lambda made, instance: made.emit_event(virtevent.LifecycleEvent(
            UUID, virtevent.EVENT_LIFECYCLE_STOPPED)),
        lambda made, instance: made._undefine_domain(instance),
        leave,
    ], ids=['event', 'undefined', 'left'])
    def test_after_a_change_it_is_asked_again(
            self, make_driver, instance, directory, happens) -> None:
        (directory / 'console.log').write_bytes(b'x')
        (directory / 'console.g1.log').write_bytes(b'y')
        domain_xml = guest_xml(fake_libvirt.serial(
            log=str(directory / 'console.log')))
        made = make_driver(domain_xml)
        assert self._read(made, instance) == b'x'
        happens(made, instance)
        made.connection.defineXML(domain_xml.replace('console.log',
                                                     'console.g1.log'))
        made.connection.lookupByUUIDString(UUID).destroy()
        assert self._read(made, instance) == b'y'

    @pytest.mark.parametrize('happens', [
        lambda made, instance: made.emit_event(virtevent.LifecycleEvent(
            UUID, virtevent.EVENT_LIFECYCLE_STOPPED)),
        lambda made, instance: made._undefine_domain(instance),
        leave,
    ], ids=['event', 'undefined', 'left'])
    def test_after_a_change_its_log_is_closed(
            self, make_driver, instance, directory, happens) -> None:
        """A file that is deleted then frees its disk at once."""
        log = directory / 'console.log'
        log.write_bytes(b'x')
        made = make_driver(guest_xml(fake_libvirt.serial(log=str(log))))
        assert self._read(made, instance) == b'x'
        assert descriptors.below(log)
        happens(made, instance)
        assert not descriptors.below(log)

    def test_as_many_backups_as_virtlogd_keeps(
            self, make_driver, instance, directory, conf, tmp_path) -> None:
        """What is left of a higher max_backups is not joined."""
        for name in ('console.log.1', 'console.log.0', 'console.log'):
            (directory / name).write_bytes(name[-1:].encode())
        conf_file = tmp_path / 'its-virtlogd.conf'
        conf.config(group='virtlogd', virtlogd_conf=str(conf_file))
        made = make_driver(guest_xml(fake_libvirt.serial(
            log=str(directory / 'console.log'))))
        for text, data in (('max_backups = 1\n', b'0g'), ('', b'10g'),
                           ('max_backups = 0\n', b'g')):
            conf_file.write_text(text)
            assert self._read(made, instance) == data

    def test_a_log_that_is_gone_is_looked_for_again(
            self, make_driver, instance, directory) -> None:
        (directory / 'console.log').write_bytes(b'x')
        made = make_driver(guest_xml(fake_libvirt.serial(
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
        made = make_driver(guest_xml(fake_libvirt.serial(
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
        made = make_driver(guest_xml(fake_libvirt.serial()))
        guest = made._host.get_guest(instance)
        guest.get_xml_desc = libvirt_fails(libvirt.VIR_ERR_NO_DOMAIN)
        made._host.get_guest = lambda _: guest
        assert self._read(made, instance) == b'panic\n'

    def test_file_device(self, make_driver, instance, directory) -> None:
        (directory / 'elsewhere').write_bytes(b'x\n')
        made = make_driver(guest_xml(
            f"<serial type='file'><source path='{directory}/elsewhere'/>"
            "</serial>"))
        assert self._read(made, instance) == b'x\n'

    def test_a_pty_without_log_is_read_where_its_log_would_be(
            self, make_driver, instance, directory) -> None:
        """The pty itself is never read: that steals from its viewer."""
        (directory / 'console.log').write_bytes(b'x\n')
        made = make_driver(guest_xml("<serial type='pty'/>"))
        assert self._read(made, instance) == b'x\n'

    def test_nothing_written_yet(self, make_driver, instance,
                                 directory) -> None:
        made = make_driver(guest_xml(fake_libvirt.serial(
            log=str(directory / 'console.log'))))
        assert self._read(made, instance) == b''

    @pytest.mark.parametrize('devices', [
        '', fake_libvirt.serial(log=None)], ids=['no serial', 'no log'])
    def test_no_log_at_all(self, make_driver, instance, devices) -> None:
        with pytest.raises(nova_exception.ConsoleNotAvailable):
            self._read(make_driver(guest_xml(devices)), instance)

    def test_a_log_that_is_a_link_is_not_followed(
            self, make_driver, instance, directory, caplog) -> None:
        (directory / 'secret').write_bytes(b'secret')
        os.symlink(directory / 'secret', directory / 'console.log')
        made = make_driver(guest_xml(fake_libvirt.serial(
            log=str(directory / 'console.log'))))
        with pytest.raises(nova_exception.ConsoleNotAvailable) as raised:
            self._read(made, instance)
        assert str(directory) not in str(raised.value)
        assert 'console.log' in caplog.text

    def test_libvirt_is_down(self, make_driver, instance) -> None:
        made = make_driver(guest_xml(fake_libvirt.serial()))
        guest = made._host.get_guest(instance)
        guest.get_xml_desc = libvirt_fails(libvirt.VIR_ERR_SYSTEM_ERROR)
        made._host.get_guest = lambda _: guest
        with pytest.raises(nova_exception.HypervisorUnavailable):
            self._read(made, instance)

    def test_malformed_xml(self, make_driver, instance) -> None:
        made = make_driver(guest_xml(fake_libvirt.serial()))
        guest = made._host.get_guest(instance)
        guest.get_xml_desc = lambda: '<domain'
        made._host.get_guest = lambda _: guest
        with pytest.raises(nova_exception.InternalError,
                           match='not well-formed'):
            self._read(made, instance)

    def test_a_file_system_that_does_not_answer(
            self, make_driver, instance, directory, monkeypatch) -> None:
        """Nobody waits for it without bound; what it is, the log says."""
        (directory / 'console.log').write_bytes(b'x')
        made = make_driver(guest_xml(fake_libvirt.serial(
            log=str(directory / 'console.log'))))
        answers = threading.Event()
        statvfs = os.statvfs

        def stalls(path: str) -> os.statvfs_result:
            answers.wait()
            return statvfs(path)
        monkeypatch.setattr(os, 'statvfs', stalls)
        monkeypatch.setattr(histories, 'DISKS', Disks(patience=0.2))
        with pytest.raises(nova_exception.ConsoleNotAvailable):
            self._read(made, instance)
        answers.set()
        monkeypatch.setattr(histories, 'DISKS', Disks(patience=60))
        assert self._read(made, instance) == b'x'
        # It is not asked each time.
        monkeypatch.setattr(histories, 'DISKS', None)
        monkeypatch.setattr(histories, 'ASKED', math.inf)
        assert self._read(made, instance) == b'x'
        monkeypatch.setattr(histories, 'ASKED', 0.0)
        with pytest.raises(AttributeError):
            self._read(made, instance)

    def test_a_file_system_that_answers_with_an_error(
            self, make_driver, instance, directory, monkeypatch) -> None:
        """The read itself finds what can be read."""
        (directory / 'console.log').write_bytes(b'x')
        made = make_driver(guest_xml(fake_libvirt.serial(
            log=str(directory / 'console.log'))))

        def fails(path: str) -> os.statvfs_result:
            raise OSError(5, path)
        monkeypatch.setattr(os, 'statvfs', fails)
        assert self._read(made, instance) == b'x'
