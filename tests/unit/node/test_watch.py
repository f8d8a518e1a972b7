# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit import fake_libvirt
from virtlogd_driver import exception
from virtlogd_driver.node import hypervisor, watch
from virtlogd_driver.virtlogd.port import Port


def _ports(devices: str) -> list[Port]:
    with fake_libvirt.FakeLibvirt(
            fake_libvirt.domain_xml(devices, name='one')) as fake:
        return watch.list_ports(fake.connection)


def test_ports_with_their_logs_and_listeners() -> None:
    found = _ports(
        fake_libvirt.serial(0, 10000, log='/a/console.log')
        + fake_libvirt.serial(1, 10001, host='fd00:0::1', log=None)
        + "<serial type='pty'><log file='/a/2'/><target port='2'/></serial>"
          "<serial type='file'><source path='/a/3'/><target port='3'/>"
          "</serial>")
    assert [(p.number, p.log, p.listener) for p in found] == [
        (0, '/a/console.log', ('127.0.0.1', 10000)),
        (1, None, ('fd00::1', 10001)), (2, '/a/2', None), (3, '/a/3', None)]
    assert {p.name for p in found} == {'one'}


@pytest.mark.parametrize(('source', 'listener'), [
    ("mode='bind' host='localhost' service='1'", ('::', 1)),
    ("mode='connect' host='127.0.0.1' service='1'", None),
])
def test_listener(source: str, listener: tuple[str, int] | None) -> None:
    (found,) = _ports(f"<serial type='tcp'><source {source}/></serial>")
    assert found.listener == listener


def test_where_the_relay_listens() -> None:
    relay = watch.Relay('127.20.0.1', 'fd00:0::7')
    with fake_libvirt.FakeLibvirt(fake_libvirt.domain_xml(
            fake_libvirt.serial(0, 10000, host='127.20.0.1')
            + fake_libvirt.serial(1, 10001)
            + "<serial type='pty'><target port='2'/></serial>")) as fake:
        found = watch.list_ports(fake.connection, relay=relay)
        assert [port.relay for port in found] == [
            ('fd00::7', 10000), None, None]
        assert not any(port.relay
                       for port in watch.list_ports(fake.connection))


def test_a_guest_that_does_not_run_has_none() -> None:
    with fake_libvirt.FakeLibvirt(
            fake_libvirt.domain_xml(fake_libvirt.serial())) as fake:
        fake.connection.lookupByName('guest').destroy()
        assert watch.list_ports(fake.connection) == []
        (port,) = watch.list_ports(fake.connection, off=True)
        assert not port.active


def test_a_guest_that_cannot_be_understood_has_one_port_that_says_so(
        monkeypatch: pytest.MonkeyPatch) -> None:
    guests = [hypervisor.Guest('1', 'odd', True, 'running', '<capabilities/>'),
              hypervisor.Guest('2', 'two', True, 'running',
                         fake_libvirt.domain_xml(fake_libvirt.serial()))]
    monkeypatch.setattr(hypervisor, 'list_guests', lambda _: guests)
    odd, two = watch.list_ports(None)
    assert (odd.name, odd.number, odd.log) == ('odd', 0, None)
    assert 'not a <domain>' in odd.unclear
    assert (two.name, two.unclear) == ('two', '')


def test_a_port_that_cannot_be_understood_is_watched_all_the_same() -> None:
    (found,) = _ports(
        "<serial type='tcp'><source mode='bind' host='::1' service='?'/>"
        "<log file='/a/l'/></serial>")
    assert (found.log, found.listener) == ('/a/l', None)
    assert "'?'" in found.unclear


def test_numbers_are_those_of_the_guest() -> None:
    found = _ports(
        fake_libvirt.serial(1, 10001)
        + "<console type='pty'><log file='/v'/><target type='virtio'/>"
          '</console>')
    assert [(p.number, p.log) for p in found] == [
        (1, '/var/log/guest.log'), (2, '/v')]


class _Proxy:
    """Nothing can be called on it: it has to be given to ``run``."""

    def __init__(self, behind: Any) -> None:
        self.behind = behind


def _run(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*(argument.behind if isinstance(argument, _Proxy)
                      else argument for argument in arguments))


def test_what_blocks_gets_the_connection_behind_its_proxy() -> None:
    """See ``test_nova_edge``."""
    with fake_libvirt.FakeLibvirt(fake_libvirt.domain_xml(
            fake_libvirt.serial(), name='one')) as fake:
        connection = _Proxy(fake.connection)
        assert [port.name for port in watch.list_ports(connection, _run)] == [
            'one']
        gone = Port('01234567-89ab-cdef-0123-456789abcdef', 'n', 0, '/log')
        with pytest.raises(exception.GuestNotFound):
            watch.reattach_log(connection, gone, '/s', 1, _run)


def test_a_port_without_a_log_is_not_attached() -> None:
    with pytest.raises(exception.ReattachFailed, match='has no log'):
        watch.reattach_log(None, Port('u', 'n', 0, None), '/s', 1)
