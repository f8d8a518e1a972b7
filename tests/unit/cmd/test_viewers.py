# SPDX-License-Identifier: Apache-2.0
"""``virtlogd-console viewers`` lists viewers, and disconnects them.

With real connections: tests/functional/test_attach.py and test_relay.py.
"""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit import fake_libvirt
from virtlogd_driver import exception
from virtlogd_driver.cmd import host as hosts
from virtlogd_driver.cmd import viewers
from virtlogd_driver.node.hypervisor import Guest
from virtlogd_driver.virtlogd import viewer
from virtlogd_driver.virtlogd.viewer import Viewer

INNER, OUTER = '127.20.0.1', '192.0.2.7'


def connection(local: tuple[str, int], peer: tuple[str, int],
               full: bool = False) -> Viewer:
    return Viewer(local, peer, 12.4, full, str(peer).encode())


CONNECTIONS = [
    connection(('192.0.2.7', 10000), ('192.0.2.8', 1)),
    connection(('192.0.2.7', 10000), ('192.0.2.8', 2), full=True),
    connection(('192.0.2.7', 10001), ('2001:db8::8', 3)),
    # The relay's own, to QEMU, and another guest's.
    connection((INNER, 10001), (INNER, 4)),
    connection(('192.0.2.7', 10002), ('192.0.2.8', 5)),
]


def guest(active: bool = True) -> Guest:
    return Guest('uuid', 'guest1', active, 'running', fake_libvirt.domain_xml(
        fake_libvirt.serial(0, 10000, '192.0.2.7')
        + fake_libvirt.serial(1, 10001, INNER)))


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> hosts.Host:
    made = hosts.Host('test:///', '/s', 1, relay=(INNER, OUTER))
    monkeypatch.setattr(made, 'guest', lambda word: guest())

    def connected(listeners: Any) -> list[Viewer]:
        wanted = list(listeners)
        return [one for one in CONNECTIONS
                if any(viewer.is_at(one, at) for at in wanted)]
    monkeypatch.setattr(viewer, 'viewers', connected)
    return made


def run(host: hosts.Host, disconnect: str | None = None) -> int:
    return viewers.run(host, SimpleNamespace(
        guest='guest1', disconnect=disconnect))


def test_who_is_at_each_console(host: hosts.Host,
                                capsys: pytest.CaptureFixture[str]) -> None:
    """Of one that is relayed: who is at the relay."""
    assert run(host) == 0
    assert capsys.readouterr().out.splitlines() == [
        'CONSOLE   VIEWER           READS',
        'guest1    192.0.2.8:1      yes',
        'guest1    192.0.2.8:2      nothing for 12 s',
        'guest1:1  [2001:db8::8]:3  yes']


def test_nobody_is_at_a_guest_that_is_off(host: hosts.Host) -> None:
    assert host.viewers(hosts.serial_ports(guest(active=False))) == [[], []]


@pytest.mark.parametrize(('word', 'ended'), [
    ('192.0.2.8:2', [('192.0.2.8', 2)]),
    ('192.0.2.8', [('192.0.2.8', 1), ('192.0.2.8', 2)]),
    ('[2001:db8::8]:3', [('2001:db8::8', 3)]),
])
def test_only_who_is_named_is_disconnected(
        host: hosts.Host, monkeypatch: pytest.MonkeyPatch, word: str,
        ended: list[tuple[str, int]]) -> None:
    """Never who is at another guest, nor the relay itself."""
    done: list[bytes] = []
    monkeypatch.setattr(viewer, 'disconnect', done.append)
    assert run(host, word) == 0
    assert done == [str(peer).encode() for peer in ended]


@pytest.mark.parametrize('word', ['192.0.2.8:5', '192.0.2.9', INNER, ''])
def test_who_is_not_there(host: hosts.Host, word: str) -> None:
    with pytest.raises(exception.HostError, match='not at a console'):
        run(host, word)


def test_an_address_of_the_relay_that_is_a_name(
        host: hosts.Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked up: as a name it could be that of QEMU, too."""
    monkeypatch.setattr(host, '_relay', (INNER, 'localhost'))
    assert host.viewers_address(INNER) in ('127.0.0.1', '::1')
    assert host.viewers_address('192.0.2.7') == '192.0.2.7'


def test_a_kernel_that_does_not_tell(host: hosts.Host,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(listeners: Any) -> list[Viewer]:
        raise OSError(2, 'No such file or directory')
    monkeypatch.setattr(viewer, 'viewers', refused)
    with pytest.raises(exception.HostError, match='Load its module'):
        run(host)
