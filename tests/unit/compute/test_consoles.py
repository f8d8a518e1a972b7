# SPDX-License-Identifier: Apache-2.0
"""A guest gets its devices, its ports and its serial console."""

import socket
import types
import uuid

import fixtures
import pytest
from lxml import etree
from nova import exception as nova_exception
from nova import objects
from nova.virt.libvirt import config as vconfig

from tests.unit import fake_libvirt
from tests.unit.compute.given import (
    UUID,
    consoles,
    flavor_of,
    guest_xml,
    image_of,
)
from virtlogd_driver.guest import char_device
from virtlogd_driver.node.watch import Relay


class TestWhatAGuestGets:

    def test_capable(self, make_driver, instance, directory) -> None:
        (device,) = consoles(make_driver(), instance)
        assert device.address == ('127.0.0.1', 10000)
        assert device.log == char_device.Log(
            str(directory / 'console.log'), append=True)

    def test_ports_of_flavor_and_image(self, make_driver, instance,
                                       directory) -> None:
        flavor = flavor_of(**{'hw:serial_port_count': '4'})
        made = make_driver()
        assert len(consoles(made, instance, flavor)) == 4
        devices = consoles(made, instance, flavor,
                           image_of(hw_serial_port_count=2))
        assert [d.log_file for d in devices] == [
            str(directory / 'console.log'),
            str(directory / 'console.port1.log')]

    def test_too_many_ports(self, make_driver, instance) -> None:
        with pytest.raises(nova_exception.SerialPortNumberLimitExceeded,
                           match=r'has 1 to 4.*hw:serial_port_count'):
            consoles(make_driver(), instance,
                     image=image_of(hw_serial_port_count=5))

    def test_too_many_ports_is_said_before_anything_is_made(
            self, make_driver, instance, tmp_path) -> None:
        instance.flavor = flavor_of(**{'hw:serial_port_count': '5'})
        with pytest.raises(nova_exception.SerialPortNumberLimitExceeded):
            make_driver().spawn(None, instance, image_of(), [], None, {})
        assert not (tmp_path / UUID).exists()

    def test_a_guest_that_is_still_defined_gets_its_ports(
            self, make_driver, instance) -> None:
        """Rescue, same-host resize, reverted migration: nova gives none."""
        made = make_driver(guest_xml(fake_libvirt.serial(0, 10005)))
        made._adopt_guests()
        (device,) = consoles(made, instance)
        assert device.address == ('127.0.0.1', 10005)

    @pytest.mark.parametrize(('fallback', 'type_'), [
        ('file', 'file'), ('tcp', 'tcp')])
    def test_old_host(self, make_driver, instance, conf, fallback,
                      type_) -> None:
        conf.config(group='virtlogd', fallback_device=fallback)
        (device,) = consoles(make_driver(qemu_version=2_006_000), instance)
        assert (device.type, device.log) == (type_, None)

    def test_stdio_handler(self, make_driver, instance, tmp_path) -> None:
        (tmp_path / 'qemu.conf').write_text('stdio_handler = "file"\n')
        (device,) = consoles(make_driver(), instance)
        assert device.type == 'file'

    def test_without_serial_consoles(self, make_driver, instance,
                                     conf) -> None:
        conf.config(group='serial_console', enabled=False)
        (device,) = consoles(make_driver(), instance)
        assert device.type == 'pty'
        assert device.log.append

    def test_ipv6(self, make_driver, instance, conf) -> None:
        conf.config(group='serial_console', proxyclient_address='::1')
        (device,) = consoles(make_driver(), instance)
        assert device.address == ('::1', 10000)

    def test_range_exhausted(self, make_driver, instance, conf) -> None:
        conf.config(group='serial_console', port_range='10000:10000')
        made = make_driver()
        consoles(made, objects.Instance(uuid=str(uuid.uuid4()), id=8))
        with pytest.raises(nova_exception.SocketPortRangeExhaustedException,
                           match='10000:10000'):
            consoles(made, instance)

    def test_parallels_has_none(self, make_driver, instance, conf) -> None:
        conf.config(group='libvirt', virt_type='parallels')
        assert consoles(make_driver(), instance) == ()

    def test_nova_sees_the_attributes_of_its_own_class(
            self, make_driver, instance, directory) -> None:
        config = vconfig.LibvirtConfigGuest()
        make_driver()._create_consoles(
            config, instance, flavor_of(), image_of())
        (device,) = config.devices
        assert isinstance(device, vconfig.LibvirtConfigGuestSerial)
        assert (device.type, device.listen_host, device.listen_port,
                device.log.file, device.log.append) == (
            'tcp', '127.0.0.1', 10000, str(directory / 'console.log'), 'on')


def test_written_as_the_plan_has_it(make_driver, instance) -> None:
    """nova's own class would leave out append of a file."""
    config = vconfig.LibvirtConfigGuest()
    config.virt_type = 'qemu'
    made = make_driver(libvirt_version=1_003_002)
    made._create_consoles(config, instance, flavor_of(), image_of())
    source = etree.fromstring(config.to_xml()).find('.//serial/source')
    assert source.get('append') == 'on'


class TestPorts:

    def test_a_stopped_guests_port_that_another_process_has_taken(
            self, make_driver, instance, conf) -> None:
        """Its domain stays defined when it is rescued."""
        with socket.create_server(('127.0.0.1', 0)) as other:
            taken = other.getsockname()[1]
            conf.config(group='serial_console',
                        port_range=f'{taken}:{taken + 9}')
            made = make_driver(guest_xml(fake_libvirt.serial(0, taken)))
            made._adopt_guests()
            # It runs, so that it is taken for its own.
            (device,) = consoles(made, instance)
            assert device.address == ('127.0.0.1', taken)
            made.connection.lookupByUUIDString(instance.uuid).destroy()
            (device,) = consoles(made, instance)
            assert device.address != ('127.0.0.1', taken)

    def test_held_until_undefined(self, make_driver, instance,
                                  directory) -> None:
        made = make_driver(guest_xml(fake_libvirt.serial(0, 10000)))
        made._adopt_guests()
        made._undefine_domain(instance)
        made._undefine_domain(instance)
        assert made._consoles.ports.held() == {}

    def test_a_guest_with_xml_that_is_not_understood(
            self, make_driver, caplog) -> None:
        made = make_driver(guest_xml(fake_libvirt.serial(0, 10000)))
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


class TestSerialConsole:

    def test_first_port(self, make_driver, instance) -> None:
        made = make_driver(guest_xml(
            fake_libvirt.serial(1, 10001) + fake_libvirt.serial(0, 10000)))
        console = made.get_serial_console(None, instance)
        assert (console.host, console.port) == ('127.0.0.1', 10000)
        assert console.get_connection_info('t', 'u')['port'] == 10000

    def test_fallback_says_why(self, make_driver, instance, conf,
                               caplog) -> None:
        made = make_driver(
            guest_xml("<serial type='file'><source path='/l'/></serial>"),
            libvirt_version=1_002_000)
        made._consoles.capability()
        with caplog.at_level('INFO'), pytest.raises(
                nova_exception.ConsoleTypeUnavailable):
            made.get_serial_console(None, instance)
        assert 'libvirt 1.2.0 is older than 1.3.3' in caplog.text

    def test_no_guest(self, make_driver, instance) -> None:
        with pytest.raises(nova_exception.InstanceNotFound):
            make_driver().get_serial_console(None, instance)


class TestRelay:
    """Guests listen where only this host reaches them."""

    @pytest.fixture(autouse=True)
    def relayed(self, conf) -> None:
        conf.config(group='virtlogd', relay=True)
        conf.config(group='serial_console', proxyclient_address='127.0.0.1')

    def test_where_a_guest_listens(self, make_driver, instance,
                                   directory) -> None:
        made = make_driver()
        (device,) = consoles(made, instance)
        assert device.address == ('127.20.0.1', 10000)
        assert device.log.append
        # Others are kept away from where its viewers connect.
        assert list(made._consoles.ports.held()) == [('127.0.0.1', 10000)]

    def test_where_its_viewers_connect(self, make_driver, instance) -> None:
        made = make_driver(_relayed())
        console = made.get_serial_console(None, instance)
        assert (console.host, console.port) == ('127.0.0.1', 10000)

    @pytest.mark.parametrize('relay', [True, False])
    def test_a_guest_keeps_what_it_has(self, make_driver, instance, conf,
                                       relay) -> None:
        """Until its next start, whatever the option says since."""
        conf.config(group='virtlogd', relay=relay)
        made = make_driver(_relayed() if not relay else guest_xml(
            fake_libvirt.serial(0, 10000)))
        made._adopt_guests()
        console = made.get_serial_console(None, instance)
        assert (console.host, console.port) == ('127.0.0.1', 10000)
        assert list(made._consoles.ports.held()) == [('127.0.0.1', 10000)]
        (device,) = consoles(made, instance)
        assert device.address == (
            '127.20.0.1' if relay else '127.0.0.1', 10000)

    def test_its_port_is_no_others(self, make_driver, instance) -> None:
        """Also that of a guest which was started before the relay."""
        made = make_driver(guest_xml(fake_libvirt.serial(0, 10000)))
        made._adopt_guests()
        (device,) = consoles(
            made, objects.Instance(uuid=str(uuid.uuid4()), id=8))
        assert device.address == ('127.20.0.1', 10001)

    @pytest.mark.parametrize(('ports', 'given'), [
        ('10000:10010', 10001),
        # It may be the relay, which lets go of it in a moment.
        ('10000:10000', 10000)])
    def test_a_port_that_the_relay_cannot_have_is_the_last(
            self, make_driver, instance, conf, ports, given) -> None:
        """It says that a new start gives the guest another one."""
        conf.config(group='serial_console', port_range=ports,
                    proxyclient_address='127.79.0.1')
        made = make_driver()
        with socket.create_server(('127.79.0.1', 10000)):
            (device,) = consoles(made, instance)
        assert device.address == ('127.20.0.1', given)

    def test_the_relays_address_may_come_later(self, make_driver, instance,
                                               conf) -> None:
        conf.config(group='serial_console', proxyclient_address='192.0.2.1')
        (device,) = consoles(make_driver(), instance)
        assert device.address == ('127.20.0.1', 10000)

    @pytest.mark.parametrize(('option', 'value', 'said'), [
        (('serial_console', 'proxyclient_address'), '0.0.0.0',  # noqa: S104
         'proxyclient_address.*the one address'),
        (('virtlogd', 'relay_guest_address'), '192.0.2.1',
         r'relay_guest_address.*127\.0\.0\.0/8'),
        (('virtlogd', 'relay_guest_address'), '127.0.0.1',
         'relay_guest_address.*another address')])
    def test_addresses_that_cannot_be(self, make_driver, conf, option, value,
                                      said) -> None:
        conf.config(group=option[0], **{option[1]: value})
        made = make_driver()
        with fixtures.MonkeyPatch(
                'nova.virt.libvirt.driver.LibvirtDriver.init_host',
                lambda *_: None), pytest.raises(
                nova_exception.InvalidConfiguration, match=said):
            made.init_host('host')

    def test_what_the_health_pass_knows(self, make_driver, conf) -> None:
        """A guest may be relayed from before the option was turned off."""
        conf.config(group='virtlogd', relay=False)
        conf.config(group='serial_console', proxyclient_address='fd00:0::7')
        made = make_driver()._options
        assert made.relay() == Relay('127.20.0.1', 'fd00::7')
        conf.config(group='serial_console', proxyclient_address='no.invalid')
        assert made.relay() is None
        conf.config(group='serial_console', enabled=False,
                    proxyclient_address='127.0.0.1')
        assert made.relay() is None

    def test_a_guest_that_comes_from_another_host(self, make_driver) -> None:
        data = types.SimpleNamespace(
            serial_listen_addr='127.0.0.1', serial_listen_ports=[],
            obj_attr_is_set=lambda _: True)
        made = make_driver()
        with made._arrivals.without_novas_ports(data) as address:
            assert address == '127.0.0.1'
        assert data.serial_listen_addr == '127.20.0.1'


def _relayed() -> str:
    return guest_xml(fake_libvirt.serial(0, 10000, host='127.20.0.1'))
