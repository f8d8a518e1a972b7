# SPDX-License-Identifier: Apache-2.0
"""attach connects to each kind of port that allows it, and refuses others."""

import json
import socket
from pathlib import Path

import pytest
from lxml import etree
from lxml.builder import E

from tests.functional.by_hand import define, log_of
from tests.lab import guest
from tests.lab.command import Console, PseudoTerminal
from tests.lab.daemons import LibvirtHost
from tests.lab.wait import until

ESCAPE = b'\x1d'


def attached(console: Console, *arguments: str) -> PseudoTerminal:
    terminal = console.on_terminal('attach', 'guest1', *arguments)
    terminal.read_until(b'leaves')
    until(lambda: terminal.attributes != terminal.before, 'raw mode')
    return terminal


def type_and_leave(terminal: PseudoTerminal) -> None:
    terminal.type(b'typed\r')
    terminal.read_until(b'typed\r\n')
    terminal.type(ESCAPE)
    assert terminal.wait() == 0
    assert terminal.attributes == terminal.before


def tcp(port: int, protocol: str = 'raw', mode: str = 'bind', **more: str
        ) -> etree._Element:
    return E.serial(
        E.source(mode=mode, host='127.0.0.1', service=str(port), **more),
        E.protocol(type=protocol), type='tcp')


def test_telnet(libvirt_host: LibvirtHost, console: Console) -> None:
    define(libvirt_host, guest.boot_sector(count=1),
           [tcp(guest.free_port(), 'telnet')]).create()
    terminal = attached(console)
    type_and_leave(terminal)
    assert b'\\xff' not in terminal.seen
    assert '\ufffd'.encode() not in terminal.seen


def test_a_byte_255_that_is_typed_is_one_byte(
        libvirt_host: LibvirtHost, console: Console) -> None:
    log = log_of(libvirt_host)
    serial = tcp(guest.free_port(), 'telnet')
    serial.append(E.log(file=str(log), append='on'))
    define(libvirt_host, guest.boot_sector(count=0), [serial]).create()
    terminal = attached(console)
    terminal.type(b'a\xffb\r')
    until(lambda: b'a\xffb\r\n' in log.read_bytes(), 'it came back')
    terminal.type(ESCAPE)
    assert terminal.wait() == 0


def test_a_unix_socket(libvirt_host: LibvirtHost, console: Console,
                       tmp_path: Path) -> None:
    """KubeVirt has them."""
    path = log_of(libvirt_host).with_name('serial0')
    define(libvirt_host, guest.boot_sector(count=1), [E.serial(
        E.source(mode='bind', path=str(path)), type='unix')]).create()
    (found,) = json.loads(console.output('list', '--json'))
    assert (found['device'], found['address']) == ('unix', str(path))
    type_and_leave(attached(console))


def test_a_virtio_console_beside_a_serial_port(
        libvirt_host: LibvirtHost, console: Console) -> None:
    define(libvirt_host, guest.boot_sector(count=1), [
        guest.pty_serial(),
        E.console(E.target(type='virtio'), type='pty')]).create()
    ports = json.loads(console.output('list', '--json'))
    assert [entry['port'] for entry in ports] == [0, 1]
    terminal = attached(console, '--port', '1')
    terminal.type(ESCAPE)
    assert terminal.wait() == 0


@pytest.mark.parametrize(('serial', 'says'), [
    (tcp(1, mode='connect'), b'connects out (mode="connect"), to 127.0.0.1:1'),
    (tcp(1, tls='yes'), b'is encrypted (TLS)'),
    (E.serial(type='null'), b'of type null: it is not interactive'),
])
def test_what_cannot_be_attached_to(
        libvirt_host: LibvirtHost, console: Console,
        serial: etree._Element, says: bytes) -> None:
    define(libvirt_host, guest.boot_sector(), [serial])
    terminal = console.on_terminal('attach', 'guest1', columns=200)
    assert terminal.wait() == 1
    assert says in terminal.seen
    assert b'leaves' not in terminal.seen


def test_a_pseudo_terminal_that_somebody_is_at(
        libvirt_host: LibvirtHost, console: Console) -> None:
    define(libvirt_host, guest.boot_sector(count=1),
           [guest.pty_serial()]).create()
    first = attached(console)
    second = console.on_terminal('attach', 'guest1')
    assert second.wait() == 1
    assert b'Somebody is at this console of guest guest1' in second.seen
    assert b'libvirtd' not in second.seen
    type_and_leave(first)


@pytest.mark.parametrize('serial', [tcp, lambda _port: guest.pty_serial()])
def test_it_ends_when_the_guest_is_deleted(
        libvirt_host: LibvirtHost, console: Console, serial: object) -> None:
    assert callable(serial)
    domain = define(libvirt_host, guest.boot_sector(count=1),
                    [serial(guest.free_port())])
    domain.create()
    terminal = attached(console)
    domain.destroy()
    terminal.read_until(b'waiting for the guest')
    domain.undefine()
    assert terminal.wait() == 0
    assert b'guest1 is on this host no more' in terminal.seen
    assert terminal.attributes == terminal.before


def test_only_the_second_port(libvirt_host: LibvirtHost,
                              console: Console) -> None:
    serial = tcp(guest.free_port())
    serial.append(E.target(port='1'))
    log = log_of(libvirt_host)
    serial.append(E.log(file=str(log), append='on'))
    define(libvirt_host, guest.boot_sector(), [serial])
    log.write_bytes(b'ttyS1')
    (found,) = json.loads(console.output('list', '--json'))
    assert found['port'] == 1
    assert console.output('show', '--port', '1', 'guest1') == b'ttyS1'
    assert b'no serial port 0: it has 1' in console.run(
        'show', 'guest1').stderr


def test_who_watches_sends_nothing(libvirt_host: LibvirtHost,
                                   console: Console) -> None:
    log = log_of(libvirt_host)
    serial = tcp(guest.free_port())
    serial.append(E.log(file=str(log), append='on'))
    define(libvirt_host, guest.boot_sector(count=1), [serial]).create()
    terminal = attached(console, '--watch')
    assert b'what is typed is not sent' in terminal.seen
    terminal.type(b'never\r' + ESCAPE)
    assert terminal.wait() == 0
    type_and_leave(attached(console))
    assert b'never' not in log.read_bytes()


def test_who_is_at_a_console_is_listed_and_disconnected(
        libvirt_host: LibvirtHost, console: Console) -> None:
    def viewers(*arguments: str) -> str:
        return console.output('viewers', 'guest1', *arguments).decode()
    port = guest.free_port()
    define(libvirt_host, guest.boot_sector(count=1), [tcp(port)]).create()
    assert viewers().split() == ['CONSOLE', 'VIEWER', 'READS']
    with socket.create_connection(('127.0.0.1', port), 30) as one:
        name = f'127.0.0.1:{one.getsockname()[1]}'
        until(lambda: name in viewers(), 'the viewer is listed')
        _, row = viewers().splitlines()
        assert row.split() == ['guest1', name, 'yes']
        other = console.run('viewers', 'guest1', '--disconnect', '192.0.2.1')
        assert other.returncode == 1
        assert b'192.0.2.1 is not at a console' in other.stderr
        assert viewers('--disconnect', name) == f'{name} is disconnected\n'
        with pytest.raises(ConnectionError):
            list(iter(lambda: one.recv(4096), b''))
    # The next one is served.
    type_and_leave(attached(console))
