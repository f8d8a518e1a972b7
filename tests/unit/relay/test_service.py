# SPDX-License-Identifier: Apache-2.0
"""The relay of a host runs with a libvirt that the test plays."""

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any
from unittest import mock

import pytest

from tests.unit import fake_libvirt
from tests.unit.relay.test_console import INNER, OUTER, Qemu, run, until
from tests.unit.relay.test_settings import made
from virtlogd_driver import exception
from virtlogd_driver.console_log.log import LogRead
from virtlogd_driver.guest import char_device
from virtlogd_driver.node.events import Report, Running
from virtlogd_driver.relay import console as console_module
from virtlogd_driver.relay import control, metrics
from virtlogd_driver.relay import service as service_module
from virtlogd_driver.relay.console import Counts
from virtlogd_driver.relay.service import Relay


class Watch:
    """libvirt, as the relay is told of it."""

    def __init__(self, report: Callable[[Report], None]) -> None:
        self.report = report
        self.guests: dict[str, Running] = {}
        self.up = True
        #: UUIDs of those that it does not answer for.
        self.unanswered: frozenset[str] = frozenset()

    def start(self) -> None:
        self.all()

    def all(self) -> None:
        self.report(Report(dict(self.guests), None,
                           unanswered=self.unanswered))

    def look_at(self, uuid: str) -> None:
        if self.up:
            self.report(Report(dict(self.guests), frozenset({uuid}),
                               unanswered=self.unanswered))

    def add(self, uuid: str, service: int, number: int = 1,
            host: str = INNER) -> None:
        self.guests[uuid] = Running(
            uuid, f'name of {uuid}', number, fake_libvirt.domain_xml(
                fake_libvirt.serial(0, service, host, log=None)))


def no_log(path: str, limit: int) -> LogRead:
    raise exception.LogNotFound(path)


@contextlib.asynccontextmanager
async def service(metrics_file: str | None = None,
                  control_socket: str = '/dev/null/socket', **settings: Any
                  ) -> AsyncIterator[tuple[Relay, Watch]]:
    relay = Relay(made(address=OUTER, guest_address=INNER, **settings),
                  metrics_file, control_socket, no_log)
    watches: list[Watch] = []

    def watch(report: Callable[[Report], None]) -> Watch:
        watches.append(Watch(report))
        return watches[0]
    ending = asyncio.Event()
    task = asyncio.create_task(relay.run(watch, ending))
    await until(lambda: watches, 'it has begun')
    try:
        yield relay, watches[0]
    finally:
        ending.set()
        await task


def test_guests_come_and_go() -> None:
    async def test() -> None:
        first, second = Qemu(), Qemu()
        ports = [await first.listen(), await second.listen()]
        async with service() as (relay, libvirt):
            libvirt.add('a', ports[0])
            libvirt.all()
            await until(lambda: first.client, 'it is at the first')
            libvirt.add('b', ports[1])
            libvirt.look_at('b')
            await until(lambda: second.client, 'and at the second')
            assert len(relay.consoles) == 2
            del libvirt.guests['a']
            first.stop()
            libvirt.look_at('a')
            await until(lambda: len(relay.consoles) == 1, 'one is gone')
            # The same guest started anew, at the same port.
            again = Qemu()
            await again.listen(ports[0])
            libvirt.add('a', ports[0], number=2)
            libvirt.look_at('a')
            await until(lambda: again.client, 'it is there again')
            again.stop()
        second.stop()
    run(test)


def test_the_next_run_of_a_guest_gets_the_port_of_the_one_before(
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """libvirt may have a guest for a while after its QEMU has ended."""
    monkeypatch.setattr(console_module, '_PAUSE', 20)

    async def test() -> None:
        first, again = Qemu(), Qemu()
        port = await first.listen()
        async with service() as (relay, libvirt):
            libvirt.add('a', port)
            libvirt.all()
            await until(lambda: first.client, 'it is at the guest')
            await until(lambda: relay.consoles[0]._server, 'and listens')
            first.stop()
            await until(lambda: relay.consoles[0]._guest is None, 'lost')
            await asyncio.sleep(0.1)
            await again.listen(port)
            libvirt.add('a', port, number=2)
            libvirt.look_at('a')
            async with asyncio.timeout(10):
                await until(lambda: again.client, 'it is at the next run')
                await until(lambda: [console.port.run for console
                                     in relay.consoles if console._server
                                     is not None] == [2], 'and listens')
            again.stop()
    run(test)
    assert 'somebody else listens' not in caplog.text


def test_what_a_guest_was_is_no_answer() -> None:
    """Its console may be another guest's now."""
    async def test() -> None:
        qemu = Qemu()
        port = await qemu.listen()
        async with service() as (relay, libvirt):
            libvirt.add('a', port)
            libvirt.all()
            await until(lambda: qemu.client, 'it is at the guest')
            libvirt.unanswered = frozenset({'a'})
            asked = asyncio.create_task(
                relay._is_there(relay.consoles[0].port))
            await asyncio.sleep(0)
            libvirt.all()
            libvirt.look_at('a')
            await asyncio.sleep(0.05)
            assert not asked.done()
            libvirt.unanswered = frozenset()
            del libvirt.guests['a']
            libvirt.look_at('a')
            assert not await asked
            qemu.stop()
    run(test)


def test_only_guests_that_listen_where_the_relay_looks() -> None:
    """Those that were started before it, and other devices, are left."""
    async def test() -> None:
        async with service() as (relay, libvirt):
            libvirt.add('a', 10000, host='127.0.0.1')
            libvirt.guests['b'] = Running('b', 'b', 1, '<domain')
            libvirt.guests['c'] = Running('c', 'c', 1, fake_libvirt.domain_xml(
                "<serial type='pty'/>"))
            libvirt.all()
            await asyncio.sleep(0.05)
            assert relay.consoles == []
    run(test)


def test_a_report_of_one_guest_costs_nothing_for_the_others(
        monkeypatch, caplog) -> None:
    read: list[str] = []
    parse = char_device.parse

    def counted(xml: str) -> Any:
        read.append(xml)
        return parse(xml)
    monkeypatch.setattr(service_module.char_device, 'parse', counted)

    async def test() -> None:
        async with service() as (_, libvirt):
            for number in range(20):
                libvirt.add(str(number), 10000 + number, host='127.0.0.1')
            libvirt.guests['odd'] = Running('odd', 'odd', 1, '<domain')
            libvirt.all()
            for _ in range(10):
                libvirt.look_at('1')
            await until(lambda: len(read) == 21, 'all are read')
            libvirt.add('1', 10001, number=2, host='127.0.0.1')
            libvirt.all()
            await until(lambda: len(read) == 22, 'the one that is new')
    run(test)
    assert len([m for m in caplog.messages if 'odd' in m]) == 1


def test_libvirt_is_down(caplog) -> None:
    """It is said once; who is there stays, and is heard."""
    async def test() -> None:
        qemu = Qemu()
        port = await qemu.listen()
        async with service() as (relay, libvirt):
            libvirt.add('a', port)
            libvirt.all()
            await until(lambda: relay.consoles and relay.consoles[0]._server,
                        'it listens')
            reader, writer = await asyncio.open_connection(OUTER, port)
            await until(lambda: relay.consoles[0].viewers, 'it is there')
            libvirt.up = False
            for _ in range(3):
                libvirt.report(Report(None, None, 'libvirtd is down.'))
            qemu.write(b'on\n')
            assert await reader.readline() == b'on\n'
            # What is not known to run is not connected to again.
            qemu.drop()
            await reader.readuntil(b']\r\n')
            await asyncio.sleep(0.05)
            assert qemu.connections == 1
            libvirt.up = True
            libvirt.all()
            await until(lambda: qemu.connections == 2, 'it is there again')
            writer.close()
        qemu.stop()
    with caplog.at_level(logging.INFO):
        run(test)
    assert sum('libvirtd is down' in m for m in caplog.messages) == 1
    assert 'libvirt answers again' in caplog.messages


def test_one_console_that_fails_is_one(caplog, monkeypatch) -> None:
    async def test() -> None:
        qemu = Qemu()
        port = await qemu.listen()
        async with service() as (relay, libvirt):
            async def broken(_: object) -> bool:
                raise ValueError('made by the test')
            right, relay._shared.is_there = relay._shared.is_there, broken
            libvirt.add('a', port)
            libvirt.all()
            await until(lambda: 'made by the test' in caplog.text, 'said')
            await until(lambda: not relay.consoles, 'it is gone')
            relay._shared.is_there = right
            libvirt.all()
            await until(lambda: qemu.client, 'the next look begins it anew')
        qemu.stop()
    run(test)


def test_stalled_disks_keep_no_other_log_from_being_read() -> None:
    """However many, and the relay ends all the same."""
    goes_on = threading.Event()

    def read(path: str, limit: int) -> Any:
        if path.startswith('/stalled'):
            goes_on.wait()
        if path == '/gone':
            raise exception.LogNotFound('no log')
        return path, limit
    many = 100

    async def test() -> None:
        reads = service_module._Reads(read)
        stalled = [asyncio.create_task(reads.read(f'/stalled/{n}', 1))
                   for n in range(many)]
        await asyncio.sleep(0)
        assert await reads.read('/well', 7) == ('/well', 7)
        with pytest.raises(exception.LogNotFound):
            await reads.read('/gone', 1)
        # One thread a log, and not one more with each try.
        with pytest.raises(exception.LogError, match='has not returned'):
            await reads.read('/stalled/0', 1)
        for task in stalled:
            task.cancel()
    run(test)
    goes_on.set()


def test_a_turn_is_taken_and_given(tmp_path) -> None:
    path = str(tmp_path / 'socket')

    async def test() -> None:
        qemu = Qemu()
        port = await qemu.listen()
        async with service(control_socket=path, writers='first') as (
                relay, libvirt):
            libvirt.add('a', port)
            libvirt.all()
            await until(lambda: relay.consoles and relay.consoles[0]._server,
                        'it listens')
            one, two = [await asyncio.open_connection(OUTER, port)
                        for _ in range(2)]

            async def ask(turn: control.Turn, writer: asyncio.StreamWriter,
                          port: int = port) -> None:
                await asyncio.to_thread(control.ask, path, control.Request(
                    turn, writer.get_extra_info('sockname'), port))
            await ask('take', two[1])
            assert b'types now' in await one[0].readuntil(b'now]\r\n')
            assert b'you may type now' in await two[0].readuntil(b'now]\r\n')
            one[1].write(b'one')
            two[1].write(b'two')
            await until(lambda: qemu.got == b'two', 'only the second types')
            await ask('give', two[1])
            await one[0].readuntil(b'you may type now]\r\n')
            two[1].write(b'two')
            one[1].write(b'one')
            await until(lambda: qemu.got == b'twoone', 'the first does again')
            # It is not at that console, or is nowhere.
            with pytest.raises(exception.HostError, match='is not at the'):
                await ask('take', two[1], port=9)
            two[1].close()
            await until(lambda: len(relay.consoles[0].viewers) == 1, 'gone')
            with pytest.raises(exception.HostError, match='is not at the'):
                await asyncio.to_thread(control.ask, path, control.Request(
                    'take', (OUTER, 9), port))
            one[1].close()
        qemu.stop()
        assert not os.path.exists(path)
    run(test)


def test_a_viewer_is_looked_for_after_the_time_is_over(monkeypatch) -> None:
    """It may have come while this process did not run."""
    now = 0
    monkeypatch.setattr(service_module, 'time',
                        mock.Mock(monotonic=lambda: now))
    answers = iter([False, True])

    def turn(*_: object) -> bool:
        nonlocal now
        now += 60
        return next(answers)

    one = mock.Mock(turn=turn, port=mock.Mock(service=7))
    relay = Relay(made(address=OUTER, guest_address=INNER), None, '/none',
                  no_log)
    relay._consoles['one'] = one
    run(lambda: relay._turn(control.Request('take', (OUTER, 9), 7)))


def test_metrics(tmp_path) -> None:
    path = tmp_path / 'relay.prom'

    async def test() -> None:
        qemu = Qemu()
        port = await qemu.listen()
        async with service(str(path)) as (relay, libvirt):
            libvirt.add('a', port)
            libvirt.all()
            await until(lambda: relay.consoles and relay.consoles[0]._server,
                        'it listens')
            _, writer = await asyncio.open_connection(OUTER, port)
            await until(lambda: relay.consoles[0].viewers, 'it is there')
            writer.write(b'abc')
            await until(lambda: qemu.got == b'abc', 'it is typed')
            file = metrics.File(str(path))
            file.write(list(map(metrics.see, relay.consoles)), relay._past)
            text = path.read_text()
            assert ('virtlogd_driver_relay_viewers{guest="a",port="0"} 1.0\n'
                    in text)
            assert ('virtlogd_driver_relay_typed_bytes_total'
                    '{guest="a",port="0"} 3.0\n' in text)
            assert path.stat().st_mode & 0o777 == 0o644
            writer.close()
            qemu.stop()
            del libvirt.guests['a']
            await until(lambda: not relay.consoles, 'it is gone')
            file.write(list(map(metrics.see, relay.consoles)), relay._past)
            assert ('virtlogd_driver_relay_host_typed_bytes_total 3.0\n'
                    in path.read_text())
    run(test)


def test_metrics_that_have_not_changed_are_only_touched(tmp_path) -> None:
    path = tmp_path / 'relay.prom'
    file, past = metrics.File(str(path)), Counts()
    file.write([], past)
    os.utime(path, (0, 0))
    inode = path.stat().st_ino
    file.write([], past)
    assert path.stat().st_mtime > 0
    assert path.stat().st_ino == inode
    past.typed = 1
    file.write([], past)
    assert 'host_typed_bytes_total 1.0' in path.read_text()
    path.unlink()
    file.write([], past)
    assert path.exists()


def test_metrics_that_cannot_be_written(tmp_path, caplog) -> None:
    async def test() -> None:
        async with service(str(tmp_path / 'gone/relay.prom')):
            await until(lambda: 'relay_metrics_file' in caplog.text,
                        'it is said')
    run(test)
    assert 'No such file' in caplog.text


def test_there_can_be_no_more_threads(tmp_path, caplog, monkeypatch) -> None:
    """As at a limit of the system: the relay serves guests all the same."""
    monkeypatch.setattr(service_module, '_METRICS', 0.05)
    start = threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def test() -> None:
        async with service(str(tmp_path / 'relay.prom')):
            monkeypatch.setattr(threading.Thread, 'start', fail)
            await until(lambda: 'start new thread' in caplog.text,
                        'it is said')
            monkeypatch.setattr(threading.Thread, 'start', start)
            await until((tmp_path / 'relay.prom').exists, 'it goes on')
        reads = service_module._Reads(
            lambda path, limit: LogRead(b'read', None, True))
        monkeypatch.setattr(threading.Thread, 'start', fail)
        with pytest.raises(exception.LogError, match='start new thread'):
            await reads.read('/log', 9)
        monkeypatch.setattr(threading.Thread, 'start', start)
        assert (await reads.read('/log', 9)).data == b'read'
    run(test)


def test_metrics_on_a_disk_that_stalls(tmp_path, caplog, monkeypatch) -> None:
    """No guest waits for it: QEMU is read, and viewers are served."""
    goes_on = threading.Event()
    monkeypatch.setattr(service_module, '_METRICS', 0.05)
    monkeypatch.setattr(metrics.File, 'write', lambda *_: goes_on.wait(60))

    async def test() -> None:
        qemu = Qemu()
        port = await qemu.listen()
        async with service(str(tmp_path / 'relay.prom')) as (relay, libvirt):
            libvirt.add('a', port)
            libvirt.all()
            await until(lambda: relay.consoles and relay.consoles[0]._server,
                        'it listens')
            await until(lambda: 'relay_metrics_file' in caplog.text,
                        'it is said')
            reader, writer = await asyncio.open_connection(OUTER, port)
            await until(lambda: relay.consoles[0].viewers, 'it is there')
            qemu.write(b'go on')
            assert await reader.readexactly(5) == b'go on'
            writer.close()
            qemu.stop()
    run(test)
    goes_on.set()
    assert [message for message in caplog.messages if 'metrics' in message
            ] == [f'[virtlogd] relay_metrics_file = {tmp_path}/relay.prom '
                  'cannot be written (its file system does not answer): see '
                  'to its directory. It is tried again']


@pytest.mark.parametrize('address', [OUTER, '127.0.0.9'])
def test_reload(address, caplog) -> None:
    async def test() -> None:
        async with service() as (relay, _):
            relay.reload(made(address=address, guest_address=INNER,
                              port_viewers=1))
            settings = relay._shared.settings
            assert (settings.address, settings.port_viewers) == (OUTER, 1)
    run(test)
    assert ('restarted' in caplog.text) == (address != OUTER)
