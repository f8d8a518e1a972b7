# SPDX-License-Identifier: Apache-2.0
"""virtlogd-console-relay serves many viewers of real guests; nobody waits."""

import contextlib
import json
import logging
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import fixtures
import libvirt
import pytest

from tests.functional.by_hand import define, log_of
from tests.lab import guest
from tests.lab.command import Console
from tests.lab.daemons import LibvirtHost
from tests.lab.other_machine import OtherMachine
from tests.lab.relay import GUEST_ADDRESS, Relay
from tests.lab.terminal import Terminal
from tests.lab.wait import until
from virtlogd_driver.node import watch
from virtlogd_driver.virtlogd import health, periodic, privileged, viewer

Use = Callable[[fixtures.Fixture], fixtures.Fixture]


@pytest.fixture
def relay(use: Use, libvirt_host: LibvirtHost) -> Relay:
    return use(Relay(libvirt_host.uri))


def relayed(host: LibvirtHost, sector: bytes, name: str = 'guest1'
            ) -> tuple[libvirt.virDomain, int]:
    """A guest that the relay is at, and its TCP port; not started."""
    port = guest.free_port()
    return define(host, sector, [guest.tcp_serial(
        port, log_of(host, name), address=GUEST_ADDRESS)], name), port


def connect(port: int, address: str = '127.0.0.1') -> Terminal:
    """A viewer, as soon as the relay lets one in."""
    def listens() -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection((address, port), 5).close()
            return True
        return False
    until(listens, 'the relay listens')
    return Terminal(address, port)


def test_two_viewers_and_one_that_never_reads(
        relay: Relay, libvirt_host: LibvirtHost) -> None:
    """Guest and log go on, and the two see every byte and both type."""
    domain, port = relayed(libvirt_host, guest.boot_sector(
        interval=0.05, burst=255))
    domain.create()
    with connect(port) as one, socket.socket() as never, Terminal(
            '127.0.0.1', port) as two:
        never.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        never.connect(('127.0.0.1', port))
        for viewer in (one, two):
            viewer.read_until(b'line 00040000\r\n', 120)
        for viewer, text in ((one, b'typed by one'), (two, b'and by two')):
            viewer.type(text + b'\r')
            for other in (one, two):
                other.read_until(text + b'\r\n', 120)
    log = log_of(libvirt_host)
    until(lambda: b'and by two' in log.read_bytes(), 'the log has it')
    for seen in (one.seen, two.seen):
        found = [int(n) for n in re.findall(rb'line (\d{8})\r\n', seen)]
        assert found == list(range(found[0], found[0] + len(found)))


def test_who_comes_late_sees_the_last_lines(
        use: Use, libvirt_host: LibvirtHost) -> None:
    """From the log, where they were written before the relay was there."""
    domain, port = relayed(libvirt_host, guest.boot_sector(count=50))
    domain.create()
    log = log_of(libvirt_host)
    until(lambda: log.stat().st_size >= 50 * 15, 'it has written')
    use(Relay(libvirt_host.uri, relay_context_bytes=300))
    with connect(port) as viewer:
        viewer.type(b'live\r')
        viewer.read_until(b'live\r\n')
    assert viewer.seen == guest.lines(31, 50) + b'live\r\n'


def test_the_seam_is_exact_at_a_guest_that_writes_all_the_time(
        use: Use, libvirt_host: LibvirtHost) -> None:
    domain, port = relayed(libvirt_host, guest.boot_sector(
        interval=0.05, burst=3))
    domain.create()
    log = log_of(libvirt_host)
    until(lambda: log.exists() and log.stat().st_size >= 100 * 15, 'it writes')
    for _ in range(3):
        service = Relay(libvirt_host.uri, relay_context_bytes=256 * 1024)
        with service, connect(port) as viewer:
            viewer.read_until(b'\r\n')
            now = len(re.findall(rb'line', viewer.seen))
            until(lambda now=now, viewer=viewer: len(re.findall(
                rb'line', viewer.read_until(b'\r\n') + _more(viewer)))
                > now + 30, 'it writes on')
        found = [int(n) for n in re.findall(rb'line (\d{8})\r\n',
                                            viewer.seen)]
        assert found == list(range(1, len(found) + 1))


def _more(viewer: Terminal) -> bytes:
    viewer.seen += viewer.socket.recv(65536)
    return viewer.seen


def test_stop_start_reboot(relay: Relay, libvirt_host: LibvirtHost) -> None:
    domain, port = relayed(libvirt_host, guest.boot_sector(count=3))
    domain.create()
    with connect(port) as viewer:
        viewer.read_until(guest.lines(1, 3))
        domain.destroy()
        viewer.read_until(b'the guest has stopped')
        with pytest.raises(ConnectionError):
            viewer.read_until(b'never comes')
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(('127.0.0.1', port))
    domain.create()
    with connect(port) as viewer:
        viewer.read_until(guest.lines(1, 3) * 2)
        domain.reset()
        viewer.read_until(guest.lines(1, 3) * 3)


def test_libvirtd_virtlogd_and_itself_are_restarted(
        relay: Relay, libvirt_host: LibvirtHost) -> None:
    domain, port = relayed(libvirt_host, guest.boot_sector(count=1))
    domain.create()
    with connect(port) as viewer:
        viewer.type(b'first\r')
        viewer.read_until(b'first\r\n')
        libvirt_host.stop_libvirtd()
        relay.wait_until_said('New guests are not seen')
        viewer.type(b'without libvirtd\r')
        viewer.read_until(b'without libvirtd\r\n')
        libvirt_host.start_libvirtd()
        relay.wait_until_said('libvirt answers again')
        viewer.type(b'with it\r')
        viewer.read_until(b'with it\r\n')
        log = log_of(libvirt_host)
        until(lambda: b'with it\r\n' in log.read_bytes(), 'it is logged')
        assert relay.end() == 0
        viewer.read_until(b'the relay ends')
    relay.start()
    with connect(port) as viewer:
        viewer.read_until(b'first\r\nwithout libvirtd\r\nwith it\r\n')
        relay.end(signal.SIGKILL)
    relay.start()
    with connect(port) as viewer:
        viewer.type(b'last\r')
        viewer.read_until(b'last\r\n')


def test_libvirt_is_down_at_the_start(use: Use, libvirt_host: LibvirtHost
                                      ) -> None:
    domain, port = relayed(libvirt_host, guest.boot_sector(count=1))
    domain.create()
    libvirt_host.stop_libvirtd()
    relay = use(Relay(libvirt_host.uri))
    relay.wait_until_said('New guests are not seen')
    libvirt_host.start_libvirtd()
    with connect(port) as viewer:
        viewer.read_until(guest.lines(1, 1))
    # It is said again only where libvirt is away in another way.
    said = re.findall('New guests are not seen.*', relay.said())
    assert len(said) == len(set(said))


def test_a_guest_that_moves(use: Use, tmp_path: Path) -> None:
    """Its viewers are told; on the destination it is relayed again."""
    hosts = [use(LibvirtHost(tmp_path / name, name=name, address=address))
             for name, address in (('host1', '127.0.0.1'),
                                   ('host2', '127.0.0.2'))]
    inner = ['127.20.0.1', '127.20.0.2']
    for host, address in zip(hosts, inner, strict=True):
        use(Relay(host.uri, host.address, relay_guest_address=address))
    port = guest.free_port()
    domain = hosts[0].connect().createXML(guest.domain_xml(
        hosts[0].directory, guest.boot_sector(count=5),
        [guest.tcp_serial(port, log_of(hosts[0]), address=inner[0])]))
    with connect(port) as viewer:
        viewer.read_until(guest.lines(1, 5))
        xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE)
        domain.migrate2(
            hosts[1].connect(),
            xml.replace(str(log_of(hosts[0])), str(log_of(hosts[1])))
               .replace(inner[0], inner[1]),
            libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_UNSAFE, None,
            'tcp:127.0.0.1', 0)
        viewer.read_until(b'moved to another host')

    def listens() -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection(('127.0.0.2', port), 5).close()
            return True
        return False
    until(listens, 'the other relay listens')
    with Terminal('127.0.0.2', port) as viewer:
        viewer.type(b'moved\r')
        viewer.read_until(b'moved\r\n')


def test_options_are_read_again(relay: Relay, libvirt_host: LibvirtHost
                                ) -> None:
    domain, port = relayed(libvirt_host, guest.boot_sector(count=1))
    domain.create()
    with connect(port) as viewer:
        viewer.read_until(guest.lines(1, 1))
        relay.configure(relay_port_viewers=1)
        relay.process.send_signal(signal.SIGHUP)
        relay.wait_until_said('read again')
        with Terminal('127.0.0.1', port) as other:
            other.read_until(b'too many viewers')
        relay.configure(relay_allowed='nobody')
        relay.process.send_signal(signal.SIGHUP)
        relay.wait_until_said('relay_allowed')
        viewer.type(b'stays\r')
        viewer.read_until(b'stays\r\n')


def test_metrics(relay: Relay, libvirt_host: LibvirtHost) -> None:
    domain, port = relayed(libvirt_host, guest.boot_sector(count=1))
    domain.create()
    uuid = domain.UUIDString()
    label = f'{{guest="{uuid}",port="0"}}'
    with connect(port) as viewer:
        viewer.type(b'counted\r')
        viewer.read_until(b'counted\r\n')
        lines = {f'virtlogd_driver_relay_viewers{label} 1.0',
                 f'virtlogd_driver_relay_typed_bytes_total{label} 8.0'}
        until(lambda: relay.metrics.exists() and lines <= set(
            relay.metrics.read_text().splitlines()), 'it is written', 60)


@pytest.mark.parametrize(('address', 'options', 'said'), [
    ('0.0.0.0', {}, 'the one address of this host'),  # noqa: S104
    ('127.0.0.1', {'relay_guest_address': '127.0.0.1'}, 'another address'),
    ('192.0.2.1', {}, 'relay_allowed'),
    ('127.0.0.1', {'relay_buffer_bytes': 'much'}, 'relay_buffer_bytes')])
def test_options_that_cannot_be(use: Use, libvirt_host: LibvirtHost,
                                address: str, options: dict[str, str],
                                said: str) -> None:
    """One clear error, and it does not start."""
    relay = use(Relay(libvirt_host.uri, address, **options))
    assert relay.process.wait(30) == 1
    assert said in relay.said()
    assert len(relay.said().splitlines()) == 1


def test_a_host_that_vanishes(use: Use, libvirt_host: LibvirtHost) -> None:
    """Its viewers are let go, of a guest that writes and of a quiet one."""
    machine = use(OtherMachine())
    use(Relay(libvirt_host.uri, machine.address, hasty=True,
              relay_allowed=machine.other))
    writing, one = relayed(libvirt_host, guest.boot_sector(
        interval=0.1, burst=20), 'writing')
    quiet, two = relayed(libvirt_host, guest.boot_sector(count=1), 'quiet')
    for domain in (writing, quiet):
        domain.create()
    for port in (one, two):
        with connect(port, machine.address):
            pass

    def there() -> list[str]:
        return sorted(found.peer[0] for found in viewer.viewers(
            (machine.address, port) for port in (one, two)))
    with Terminal(machine.address, one) as beside_one, Terminal(
            machine.address, two) as beside_two:
        machine.connect(one, two)
        until(lambda: len(there()) == 4, 'all are there')
        machine.pull()

        def let_go() -> bool:
            # Who reads goes on meanwhile, and so does the guest.
            _more(beside_one)
            return there() == [machine.address] * 2
        until(let_go, 'the others are let go', 60)
        beside_two.type(b'still here\r')
        beside_two.read_until(b'still here\r\n')
    found = [int(n) for n in re.findall(rb'line (\d{8})\r\n',
                                        beside_one.seen)]
    assert found == list(range(found[0], found[0] + len(found)))


def test_who_types_is_changed_by_attach(
        use: Use, libvirt_host: LibvirtHost, console: Console) -> None:
    """One that only watches keeps nobody from it; another takes over."""
    domain, port = relayed(libvirt_host, guest.boot_sector(count=1))
    domain.create()
    log = log_of(libvirt_host)
    # What virtlogd has not read as the relay comes no viewer is shown.
    until(lambda: log.exists() and log.stat().st_size, 'its line is logged')
    relay = use(Relay(libvirt_host.uri, relay_writers='first'))
    console.command += ['--config-file', str(relay.conf)]
    with connect(port):
        pass
    watching = console.on_terminal('attach', 'guest1', '--watch')
    watching.read_until(b'line 00000001')
    with Terminal('127.0.0.1', port) as first:
        first.type(b'first\r')
        first.read_until(b'first\r\n')
        second = console.on_terminal('attach', 'guest1', '--take-over')
        first.read_until(b'types now')
        second.read_until(b'you may type now')
        first.type(b'not heard\r')
        second.type(b'second\r')
        first.read_until(b'second\r\n')
        # After the guest was started again, too.
        domain.destroy()
        first.read_until(b'the guest has stopped')
        domain.create()
        second.read_until(b'[connected]')
        second.type(b'again\r')
        watching.read_until(b'again\r\n')
    for terminal in (watching, second):
        terminal.type(b'\x1d')
        assert terminal.wait() == 0
    assert b'not heard' not in log_of(libvirt_host).read_bytes()
    # No relay that can be asked, and no guest of it.
    relay.end()
    nowhere = relay.conf / 'socket'
    relay.configure(relay_socket=nowhere)
    relay.start()
    with connect(port):
        pass
    assert f'relay_socket = {nowhere} cannot be listened on' in relay.said()
    refused = console.on_terminal('attach', 'guest1', '--take-over',
                                  columns=300)
    assert refused.wait() == 1
    assert b'cannot be asked at [virtlogd] relay_socket' in refused.seen
    watching = console.on_terminal('attach', 'guest1', '--watch', columns=300)
    watching.read_until(b'relay_socket')
    watching.read_until(b'line 00000001')
    watching.type(b'\x1d')
    assert watching.wait() == 0
    define(libvirt_host, guest.boot_sector(), [guest.tcp_serial(
        guest.free_port())], 'direct').create()
    refused = console.on_terminal('attach', 'direct', '--take-over',
                                  columns=300)
    assert refused.wait() == 1
    assert b'Guest direct is not relayed' in refused.seen


def test_nova_compute_says_that_the_relay_is_gone(
        relay: Relay, libvirt_host: LibvirtHost,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, 'CLOSED_AFTER', 0)
    monkeypatch.setattr(privileged.virtlogd_context, 'client_mode', False)
    libvirt_host.make_own()
    domain, port = relayed(libvirt_host, guest.boot_sector(count=1))
    domain.create()
    task = watch.health_task(
        libvirt_host.connect, periodic.Settings(
            str(libvirt_host.virtlogd_socket), 60, 30),
        relay=lambda: watch.Relay(GUEST_ADDRESS, '127.0.0.1'))

    def said(text: str) -> bool:
        task.run_once()
        return any(text in message for message in caplog.messages)
    caplog.set_level(logging.INFO)
    with connect(port):
        pass
    assert not said('relay')
    relay.end()
    until(lambda: said('Nobody can look at 1 interactive consoles (guest1)'),
          'it is gone', pause=0.5)
    relay.start()
    with connect(port):
        pass
    assert said('The relay listens for the viewers of 1')


def test_viewers_are_counted_and_one_is_disconnected(
        relay: Relay, libvirt_host: LibvirtHost, console: Console) -> None:
    domain, port = relayed(libvirt_host, guest.boot_sector(count=1))
    domain.create()

    def counted() -> int | None:
        (row,) = json.loads(console.output('list', '--json'))
        count: int | None = row['viewers']
        return count
    with connect(port) as one, Terminal('127.0.0.1', port) as two:
        until(lambda: counted() == 2, 'both are counted')
        assert b'VIEWERS' in console.output('list')
        name = f'127.0.0.1:{one.socket.getsockname()[1]}'
        assert name.encode() in console.output('viewers', 'guest1')
        console.output('viewers', 'guest1', '--disconnect', name)
        with pytest.raises(ConnectionError):
            one.read_until(b'never comes')
        until(lambda: counted() == 1, 'one is left')
        two.type(b'still here\r')
        two.read_until(b'still here\r\n')
