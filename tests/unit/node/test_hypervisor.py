# SPDX-License-Identifier: Apache-2.0
import errno
import socket
from typing import Any

import libvirt
import pytest

from tests.unit import fake_libvirt
from virtlogd_driver import exception
from virtlogd_driver.guest.serial_port import PortPool, PortRange
from virtlogd_driver.node import hypervisor


def _capability(libvirt_version=9_000_000, qemu_version=7_002_000,
                stdio_handler='logd') -> hypervisor.ConsoleCapability:
    with fake_libvirt.FakeLibvirt(
            libvirt_version=libvirt_version,
            qemu_version=qemu_version) as fake:
        return hypervisor.console_capability(fake.connection, stdio_handler)


@pytest.mark.parametrize(('versions', 'stdio_handler', 'capable', 'why'), [
    ((1_003_003, 2_007_000), 'logd', True, 'at once'),
    ((1_003_002, 2_007_000), 'logd', False, 'libvirt 1.3.2 is older than'),
    ((1_003_003, 2_006_999), 'logd', False, 'QEMU 2.6.999 is older than'),
    ((12_008_000, 10_002_001), 'unknown', True, 'stdio handler unknown'),
    ((9_000_000, 7_002_000), 'file', False, 'set it to "logd"'),
])
def test_gate(versions, stdio_handler, capable, why) -> None:
    found = _capability(*versions, stdio_handler)
    assert found.capable is capable
    assert why in str(found)


def test_capability_of_a_real_connection_of_the_test_driver() -> None:
    connection = libvirt.open('test:///default')
    try:
        found = hypervisor.console_capability(connection, 'logd')
    finally:
        connection.close()
    assert found.libvirt > hypervisor.MIN_LIBVIRT_VERSION
    assert found.qemu == (0, 0, 2)
    assert not found.capable


def test_a_failing_connection_is_never_too_old() -> None:
    with fake_libvirt.FakeLibvirt() as fake:
        fake.connection.error = fake_libvirt.real_error(
            libvirt.VIR_ERR_INTERNAL_ERROR)
        with pytest.raises(exception.HostError, match='libvirtd'):
            hypervisor.console_capability(fake.connection, 'logd')
        with pytest.raises(exception.HostError):
            list(hypervisor.list_guests(fake.connection))


@pytest.mark.parametrize(('code', 'domain', 'number', 'remedy'), [
    (libvirt.VIR_ERR_AUTH_UNAVAILABLE, libvirt.VIR_FROM_POLKIT, -1,
     'group libvirt'),
    (libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_RPC, errno.EACCES,
     'group libvirt'),
    (libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_RPC, errno.ENOENT,
     'is running'),
    # Of a file that libvirtd itself may not read.
    (libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_QEMU, errno.EACCES,
     'is running')])
def test_a_user_who_is_refused_is_not_told_to_start_libvirtd(
        code: int, domain: int, number: int, remedy: str) -> None:
    error = fake_libvirt.real_error(code)
    error.err = (code, domain, *error.err[2:7], number, -1)
    with (pytest.raises(exception.HostError, match=f'{remedy}.$'),
          hypervisor.translated()):
        raise error


def test_list_guests() -> None:
    with fake_libvirt.FakeLibvirt(
            fake_libvirt.domain_xml(fake_libvirt.serial(), name='one'),
            fake_libvirt.domain_xml(name='two')) as fake:
        fake.connection.lookupByName('two').destroy()
        found = {g.name: g for g in hypervisor.list_guests(fake.connection)}
    assert found['one'].active
    assert not found['two'].active
    assert "service='10000'" in found['one'].xml


def test_a_guest_gone_meanwhile_is_left_out() -> None:
    class Gone:
        def UUIDString(self) -> str:
            raise fake_libvirt.real_error(libvirt.VIR_ERR_NO_DOMAIN)

    with fake_libvirt.FakeLibvirt(fake_libvirt.domain_xml()) as fake:
        domains = [Gone(), *fake.connection.listAllDomains()]
        fake.connection.listAllDomains = lambda: domains
        assert [g.name for g in hypervisor.list_guests(fake.connection)] == [
            'guest']


def _failing(code: int) -> Any:
    class Failing:
        UUIDString = staticmethod(lambda: 'uuid')
        name = staticmethod(lambda: 'busy')
        isActive = staticmethod(lambda: 1)
        state = staticmethod(lambda: [libvirt.VIR_DOMAIN_RUNNING, 1])

        def XMLDesc(self) -> str:
            raise fake_libvirt.real_error(code)
    return Failing()


def test_a_guest_that_libvirt_fails_for_hides_no_other() -> None:
    with fake_libvirt.FakeLibvirt(fake_libvirt.domain_xml()) as fake:
        domains = [_failing(libvirt.VIR_ERR_OPERATION_TIMEOUT),
                   *fake.connection.listAllDomains()]
        fake.connection.listAllDomains = lambda: domains
        busy, other = hypervisor.list_guests(fake.connection)
        assert (busy.name, busy.state) == ('busy', 'unknown')
        with pytest.raises(exception.InvalidGuestXML, match='libvirt fails'):
            busy.devices()
        assert other.devices() == ()
        # Each guest fails where libvirt itself is gone.
        fake.connection.isAlive = lambda: 0
        with pytest.raises(exception.HostError):
            hypervisor.list_guests(fake.connection)


def test_a_real_missing_domain_is_not_found() -> None:
    with fake_libvirt.FakeLibvirt() as fake, pytest.raises(
            exception.GuestNotFound), hypervisor.translated():
        fake.connection.lookupByName('nobody')


@pytest.mark.parametrize(('family', 'address'), [
    (socket.AF_INET, '127.0.0.1'), (socket.AF_INET6, '::1')])
def test_is_free(family, address) -> None:
    with socket.socket(family) as listener:
        listener.bind((address, 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert not hypervisor.is_free(address, port)
    assert hypervisor.is_free(address, port)


def test_a_lingering_connection_does_not_make_a_port_busy() -> None:
    # create_server() allows reuse, as QEMU does.
    with socket.create_server(('127.0.0.1', 0)) as listener:
        port = listener.getsockname()[1]
        client = socket.create_connection(('127.0.0.1', port))
        server, _ = listener.accept()
        server.close()   # this end closes first: it is left in TIME-WAIT
        client.close()
    assert hypervisor.is_free('127.0.0.1', port)


@pytest.mark.parametrize(('address', 'why'), [
    ('no-such-host.invalid', 'does not resolve'),
    ('a' * 70, 'does not resolve'),
    ('192.0.2.1', 'cannot be listened on')])
def test_an_address_that_is_not_ours(address, why) -> None:
    with pytest.raises(exception.InvalidAddress) as raised:
        hypervisor.is_free(address, 0)
    assert why in str(raised.value)
    assert '[serial_console] proxyclient_address' in str(raised.value)


@pytest.mark.parametrize(('busy', 'asked'), [
    ('127.0.0.1', '0.0.0.0'),  # noqa: S104
    ('127.0.0.1', '::'),
    ('127.0.0.1', '::ffff:127.0.0.1'),
    ('0.0.0.0', '127.0.0.1'),  # noqa: S104
    ('::1', '::'),
])
def test_a_port_that_is_in_use_under_another_spelling(
        busy: str, asked: str) -> None:
    family = socket.AF_INET6 if ':' in busy else socket.AF_INET
    with socket.create_server((busy, 0), family=family) as listener:
        port = listener.getsockname()[1]
        assert not hypervisor.is_free(asked, port)


@pytest.mark.parametrize(('also', 'free'), [
    ('127.0.0.1', False), ('192.0.2.1', True)])
def test_a_name_with_several_addresses(
        monkeypatch: pytest.MonkeyPatch, also: str, free: bool) -> None:
    """QEMU listens on each; one that this host lacks is in nobody's way."""
    resolve = socket.getaddrinfo

    def both(host: str, *arguments: Any, **options: Any) -> Any:
        return [*resolve('127.0.0.2', *arguments, **options),
                *resolve(also, *arguments, **options)]

    monkeypatch.setattr(socket, 'getaddrinfo', both)
    with socket.create_server(('127.0.0.1', 0)) as listener:
        port = listener.getsockname()[1]
        assert hypervisor.is_free('node1', port) is free


def test_a_port_of_root_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """The range is to be changed then, not the address."""
    def bind(_: socket.socket, address: tuple[str, int]) -> None:
        if address[1] < 1024:
            raise PermissionError(errno.EACCES, 'Permission denied')

    monkeypatch.setattr(socket.socket, 'bind', bind)
    pool = PortPool(PortRange(1023, 1024), hypervisor.is_free)
    assert pool.acquire('one', '127.0.0.1', 1) == (1024,)
    with pytest.raises(exception.PortRangeExhausted, match='below 1024'):
        pool.acquire('another', '127.0.0.1', 1)


def test_whether_a_guest_runs() -> None:
    with fake_libvirt.FakeLibvirt(fake_libvirt.domain_xml()) as fake:
        domain = fake.connection.lookupByName('guest')
        uuid = domain.UUIDString()
        assert hypervisor.runs(fake.connection, uuid)
        domain.destroy()
        assert not hypervisor.runs(fake.connection, uuid)
        domain.undefine()
        assert not hypervisor.runs(fake.connection, uuid)


def test_guests_that_run() -> None:
    with fake_libvirt.FakeLibvirt(
            fake_libvirt.domain_xml(name='on'),
            fake_libvirt.domain_xml(name='off')) as fake:
        off = fake.connection.lookupByName('off')
        off.destroy()
        assert hypervisor.guests_run(fake.connection) == {
            fake.connection.lookupByName('on').UUIDString(): True,
            off.UUIDString(): False}


class TestBootedXml:

    @pytest.fixture
    def connection(self):
        with fake_libvirt.FakeLibvirt(fake_libvirt.domain_xml()) as fake:
            yield fake.connection

    def test_booted(self, connection) -> None:
        (uuid,) = hypervisor.guest_uuids(connection)
        assert '<name>guest</name>' in hypervisor.booted_xml(connection, uuid)

    def test_restored_is_not_booted(self, connection, tmp_path) -> None:
        (uuid,) = hypervisor.guest_uuids(connection)
        saved = str(tmp_path / 'saved')
        connection.lookupByUUIDString(uuid).save(saved)
        connection.restore(saved)
        assert hypervisor.booted_xml(connection, uuid) is None

    def test_gone(self, connection) -> None:
        with pytest.raises(exception.GuestNotFound):
            hypervisor.booted_xml(
                connection, '0' * 8 + '-0000' * 3 + '-' + '0' * 12)
