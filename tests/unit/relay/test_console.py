# SPDX-License-Identifier: Apache-2.0
"""One console serves its viewers, over real connections of this host.

QEMU is played by a server of the test.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import re
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.unit.relay.test_settings import made
from virtlogd_driver import exception
from virtlogd_driver.console_log.log import LogRead, Position
from virtlogd_driver.relay import console
from virtlogd_driver.relay.console import Console, SerialPort, Shared

#: Nobody else listens at either: their ports are free.
OUTER, INNER = '127.78.0.1', '127.77.0.1'
RESET = struct.pack('ii', 1, 0)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await test()
    asyncio.run(bounded())


async def until(look: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not look():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.005)


class Qemu:
    """A guest's serial port, which serves one client at a time."""

    def __init__(self) -> None:
        self.log = bytearray()
        self.got = bytearray()
        self.client: asyncio.StreamWriter | None = None
        self.reads = asyncio.Event()
        self.reads.set()
        self.connections = 0

    async def listen(self, service: int = 0) -> int:
        self._server = await asyncio.start_server(
            self._serve, INNER, service)
        return self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader,
                     writer: asyncio.StreamWriter) -> None:
        self.client = writer
        self.connections += 1
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while True:
                await self.reads.wait()
                data = await reader.read(4096)
                if not data:
                    break
                self.got += data
        writer.close()

    def write(self, data: bytes) -> None:
        """As QEMU does: to its client, if there is one, and to the log."""
        if self.client is not None and not self.client.is_closing():
            self.client.write(data)
        self.log += data

    def drop(self) -> None:
        """Close the connection, as for a log that is brought back."""
        self.client.close()

    def stop(self) -> None:
        self._server.close()
        if self.client is not None:
            self.client.close()


@dataclasses.dataclass
class Lab:
    """A guest, and a relay at it."""

    qemu: Qemu
    console: Console
    shared: Shared
    task: asyncio.Task
    runs: bool = True
    log_error: Exception | None = None
    #: Of viewers that the test has connected.
    writers: list[asyncio.StreamWriter] = dataclasses.field(
        default_factory=list)

    @property
    def service(self) -> int:
        return self.console.port.service

    async def connect(self, host: str = OUTER, **kwargs):
        reader, writer = await asyncio.open_connection(
            host, self.service, **kwargs)
        self.writers.append(writer)
        return reader, writer

    async def served(self) -> None:
        await until(lambda: self.console._server is not None, 'it listens')


@contextlib.asynccontextmanager
async def lab(before: bytes = b'', log_error: Exception | None = None,
              service: int | None = None, serve: bool = True,
              **settings) -> AsyncIterator[Lab]:
    qemu = Qemu()
    qemu.write(before)
    port = await qemu.listen(service or 0)

    async def read_log(path: str, limit: int) -> LogRead:
        if found.log_error:
            raise found.log_error
        data = bytes(qemu.log[-limit:])
        return LogRead(data, Position(1, 1, len(qemu.log), 0), True)

    async def is_there(_: SerialPort) -> bool:
        await asyncio.sleep(0)
        return found.runs

    shared = Shared(
        made(address=OUTER, guest_address=INNER, **settings), read_log,
        is_there)
    made_console = Console(
        SerialPort('uuid', 'guest', 1, 0, port, '/log'), shared)
    found = Lab(qemu, made_console, shared, None, log_error=log_error)
    found.task = asyncio.create_task(made_console.run())
    try:
        if serve:
            await found.served()
        yield found
    finally:
        for writer in found.writers:
            writer.close()
        found.runs = False
        found.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await found.task
        qemu.stop()


def test_two_viewers_see_the_same_and_both_type() -> None:
    async def test() -> None:
        async with lab(b'before\r\n') as it:
            one, two = await it.connect(), await it.connect()
            for reader, _ in (one, two):
                assert await reader.readline() == b'before\r\n'
            it.qemu.write(b'login: ')
            for reader, _ in (one, two):
                assert await reader.readexactly(7) == b'login: '
            one[1].write(b'anna\r')
            await until(lambda: it.qemu.got == b'anna\r', 'it is typed')
            two[1].write(b'bert\r')
            await until(lambda: it.qemu.got == b'anna\rbert\r', 'typed too')
            assert it.qemu.connections == 1
            assert it.console.counts.viewers == 2
    run(test)


def test_bytes_are_passed_on_untouched() -> None:
    """Control sequences, NUL, telnet's IAC: both ways."""
    everything = bytes(range(256)) + b'\x1b[2J\x1b]0;title\x07\xff\xfd\x18'

    async def test() -> None:
        async with lab() as it:
            reader, writer = await it.connect()
            await until(lambda: it.console.viewers, 'it is there')
            it.qemu.write(everything)
            assert await reader.readexactly(len(everything)) == everything
            writer.write(everything)
            await until(lambda: it.qemu.got == everything, 'it is typed')
    run(test)


@pytest.mark.parametrize('same', [False, True])
def test_the_seam_is_exact_while_the_guest_writes(same) -> None:
    """Connected in the midst of output, with the log late by some bytes."""
    def line(number: int) -> bytes:
        return b'all the same\r\n' if same else b'line %08d\r\n' % number

    async def test() -> None:
        async with lab(b''.join(map(line, range(200))), serve=False,
                       context_size=1 << 14) as it:
            for number in range(200, 400):
                it.qemu.write(line(number))
                await asyncio.sleep(0.001)
            await it.served()
            reader, _ = await it.connect()
            await until(lambda: it.console.viewers, 'it is there')
            for number in range(400, 500):
                it.qemu.write(line(number))
            expected = b''.join(map(line, range(500)))
            assert await reader.readexactly(len(expected)) == expected
    run(test)


def test_a_log_that_was_truncated_has_all_since() -> None:
    before, now = [
        LogRead(b'x' * size, Position(1, 1, size, 0), True)
        for size in (100, 10)]
    assert console._logged_since(before, now) == 10
    assert console._logged_since(now, before) == 90


def test_without_a_log_it_is_what_came_live() -> None:
    async def test() -> None:
        async with lab(b'unseen\n',
                       log_error=exception.LogNotFound('gone')) as it:
            # Nobody knows what the line began with.
            it.qemu.write(b' of a line\nseen\n')
            await until(lambda: len(it.console._recent), 'it came')
            reader, _ = await it.connect()
            assert await reader.readline() == b'seen\n'
    run(test)


def test_a_busy_host_has_looks_enough(monkeypatch) -> None:
    """That the guest is quiet is seen, however long the looks took."""
    monkeypatch.setattr(console, '_SEAM', 0.2)
    monkeypatch.setattr(console, '_SEAM_PAUSE', 0.3)

    async def test() -> None:
        async with lab(b'before\r\n') as it:
            reader, _ = await it.connect()
            assert await reader.readline() == b'before\r\n'
    run(test)


def test_a_log_on_a_stalled_disk_keeps_nobody_waiting(monkeypatch) -> None:
    monkeypatch.setattr(console, '_SEAM', 0.1)

    async def test() -> None:
        async with lab(serve=False) as it:
            async def never(*_: object) -> LogRead:
                await asyncio.sleep(3600)
                raise AssertionError
            it.shared.read_log = never
            await it.served()
            reader, _ = await it.connect()
            await until(lambda: it.console.viewers, 'it is there')
            it.qemu.write(b'live\n')
            assert await reader.readline() == b'live\n'
    run(test)


def test_who_does_not_read_stops_nobody() -> None:
    """Neither the guest nor the nine others, who get every byte."""
    text = b''.join(b'line %08d\r\n' % n for n in range(200_000))

    async def test() -> None:
        async with lab(port_viewers=10, host_viewers=10,
                       buffer_size=1 << 18) as it:
            stopped, writer = await it.connect(limit=1024)
            peer = writer.get_extra_info('sockname')
            await until(lambda: it.console.viewers, 'it is there')
            others = [await it.connect() for _ in range(9)]
            await until(lambda: len(it.console.viewers) == 10, 'all there')

            async def all_of_it(reader) -> bytes:
                found = bytearray()
                while len(found) < len(text):
                    found += await reader.read(1 << 18)
                return bytes(found)
            readers = [asyncio.create_task(all_of_it(reader))
                       for reader, _ in others]
            for start in range(0, len(text), 1 << 16):
                it.qemu.write(text[start:start + (1 << 16)])
                await it.qemu.client.drain()
                # As fast as those who read take it.
                await until(lambda: it.console.counts.written == len(
                    it.qemu.log) and not any(
                    v._buffer for v, _ in it.console.viewers
                    if v.peer != peer), 'they read')
            for reader in readers:
                assert await reader == text
            assert it.console.dropped > 0
            # It is told, in one line, and sees the newest lines.
            seen = b''
            while not seen.endswith(text[-15:]):
                more = await stopped.read(1 << 16)
                assert more, seen[-200:]
                seen += more
            assert seen.count(b'bytes are missing here') >= 1
            for part in seen.split(b'\r\n'):
                assert part.startswith((b'line ', b'[console relay: ', b''))
    run(test)


def test_bytes_that_come_one_by_one_are_gathered(monkeypatch) -> None:
    """The first is shown at once, as the echo of a key is."""
    text = bytes(range(65, 91)) * 20
    passed: list[bytes] = []
    written = Console.written

    def counted(self: Console, data: bytes) -> None:
        passed.append(data)
        written(self, data)
    monkeypatch.setattr(Console, 'written', counted)
    # Longer than this machine may be busy.
    monkeypatch.setattr(console, '_GATHER', 0.5)

    async def test() -> None:
        async with lab() as it:
            reader, _ = await it.connect()
            await until(lambda: it.console.viewers, 'it is there')
            sock = it.qemu.client.get_extra_info('socket')
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            it.qemu.write(text[:1])
            assert await reader.readexactly(1) == text[:1]
            for place in range(1, len(text)):
                it.qemu.write(text[place:place + 1])
                await asyncio.sleep(0)
            assert await reader.readexactly(len(text) - 1) == text[1:]
            assert len(passed) < 20
    run(test)


def test_who_takes_nothing_is_disconnected() -> None:
    async def test() -> None:
        async with lab(viewer_timeout=10, buffer_size=1 << 16) as it:
            # The kernel, too, keeps little for it.
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect((OUTER, it.service))
            await until(lambda: it.console.viewers, 'it is there')
            now = time.monotonic()
            it.console.look(now)
            for _ in range(200):
                it.qemu.write(b'x' * 65535 + b'\n')
                await it.qemu.client.drain()
            await until(lambda: it.console.dropped, 'it is full')
            it.console.look(now + 1)
            it.console.look(now + 10)
            assert it.console.viewers
            it.console.look(now + 11)
            await until(lambda: not it.console.viewers, 'it is gone')
            assert it.console.counts.disconnected == 1
            assert it.shared.viewers == 0
            sock.close()
    run(test)


def test_a_quiet_viewer_stays() -> None:
    async def test() -> None:
        async with lab(viewer_timeout=10) as it:
            await it.connect()
            await until(lambda: it.console.viewers, 'it is there')
            for seconds in range(0, 100, 5):
                it.console.look(time.monotonic() + seconds)
            assert it.console.viewers
    run(test)


def test_ten_megabytes_at_once() -> None:
    """They wait with the viewer, not here, until the guest takes them."""
    data = bytes(range(256)) * 40960

    async def test() -> None:
        async with lab() as it:
            it.qemu.reads.clear()
            reader, writer = await it.connect()
            await until(lambda: it.console.viewers, 'it is there')
            writer.write(data)
            await until(lambda: not it.console._takes_input, 'it is full')
            guest = it.console._guest.transport
            for _ in range(20):
                await asyncio.sleep(0.01)
                assert guest.get_write_buffer_size() < 1 << 20
            # The guest is heard all the same.
            it.qemu.write(b'still here\n')
            assert await reader.readline() == b'still here\n'
            it.qemu.reads.set()
            await until(lambda: len(it.qemu.got) == len(data), 'all of it')
            assert it.qemu.got == data
    run(test)


@pytest.mark.parametrize('timeout', [0, 3600])
def test_who_goes_while_the_guest_takes_nothing_is_seen_to_go(
        timeout, caplog) -> None:
    """After ten seconds, however long those that are there may wait."""
    caplog.set_level(logging.INFO)

    async def test() -> None:
        async with lab(viewer_timeout=timeout) as it:
            it.qemu.reads.clear()
            _, writer = await it.connect()
            await until(lambda: it.console.viewers, 'it is there')
            writer.write(bytes(20 << 20))
            await until(lambda: not it.console._takes_input, 'it is full')
            now = time.monotonic()
            it.console.look(now)
            sock = writer.get_extra_info('socket')
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()
            await asyncio.sleep(0.1)
            it.console.look(now + 1)
            # The guest's side of the kernel may take some more until then.
            later = itertools.count(now + 20, 20)
            await until(lambda: it.console.look(next(later)) or (
                not it.console.viewers), 'it is gone')
            assert it.console._takes_input is False
    run(test)
    (seconds,) = re.findall(r'took nothing for (\d+) s', caplog.text)
    assert 10 <= int(seconds) <= 21


@pytest.mark.parametrize('when', ['at once', 'after typing', 'later'])
def test_a_reset_at_any_moment(when) -> None:
    async def test() -> None:
        async with lab(b'x' * 5000 + b'\n', port_viewers=100,
                       host_viewers=100) as it:
            for _ in range(50):
                sock = socket.create_connection((OUTER, it.service))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                if when == 'after typing':
                    sock.send(b'typed')
                if when == 'later':
                    await asyncio.sleep(0.002)
                sock.close()
            reader, _ = await it.connect()
            assert await reader.readline() == b'x' * 5000 + b'\n'
            await until(lambda: len(it.console.viewers) == 1, 'all gone')
            assert it.shared.viewers == 1
    run(test)


def test_who_may_not_is_refused_and_counted(caplog) -> None:
    async def test() -> None:
        async with lab() as it:
            it.shared.settings = dataclasses.replace(
                it.shared.settings, address='127.0.0.9')
            # As from another host: this one is always let in.
            it.console.joined(other := _Peer('192.0.2.7'))
            assert other.aborted
            assert it.console.viewers == []
            assert it.console.counts.refused == 1
            it.console.joined(_Peer('192.0.2.7'))
    with caplog.at_level(logging.WARNING):
        run(test)
    (said,) = caplog.messages
    assert '192.0.2.7' in said
    assert 'relay_allowed' in said


class _Peer:
    """A viewer from elsewhere."""

    def __init__(self, host: str) -> None:
        self.peer = (host, 1)
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True


def test_too_many_viewers_are_told_so() -> None:
    async def test() -> None:
        async with lab(port_viewers=2) as it:
            staying = [await it.connect() for _ in range(2)]
            await until(lambda: len(it.console.viewers) == 2, 'two')
            reader, _ = await it.connect()
            assert b'too many viewers' in await reader.read()
            assert it.console.counts.refused == 1
            staying[0][1].close()
            await until(lambda: len(it.console.viewers) == 1, 'one left')
            _, writer = await it.connect()
            writer.write(b'x')
            await until(lambda: it.qemu.got == b'x', 'it is let in')
    run(test)


def test_thousands_of_connections_leave_nothing() -> None:
    async def test() -> None:
        async with lab(port_viewers=5, host_viewers=5) as it:
            keeps = await it.connect()
            await until(lambda: it.console.viewers, 'it is there')
            for _ in range(100):
                some = await asyncio.gather(*(
                    it.connect() for _ in range(20)))
                for _, writer in some:
                    writer.close()
            await until(lambda: len(it.console.viewers) == 1
                        and not it.console._refused, 'all gone')
            it.qemu.write(b'fine\n')
            assert (await keeps[0].readline()) == b'fine\n'
            assert it.shared.viewers == 1
    run(test)


def test_only_the_first_types() -> None:
    async def test() -> None:
        async with lab(writers='first') as it:
            one = await it.connect()
            await until(lambda: it.console.viewers, 'the first')
            two = await it.connect()
            await until(lambda: len(it.console.viewers) == 2, 'the second')
            assert b'you only watch' in await two[0].readuntil(b']\r\n')
            two[1].write(b'two')
            one[1].write(b'one')
            await until(lambda: it.qemu.got == b'one', 'the first types')
            one[1].close()
            assert b'you may type now' in await two[0].readuntil(b']\r\n')
            two[1].write(b'two')
            await until(lambda: it.qemu.got == b'onetwo', 'then the second')
    run(test)


def test_a_guest_that_stops() -> None:
    """Its viewers are told, and its TCP port is free for another guest."""
    async def test() -> None:
        async with lab() as it:
            reader, _ = await it.connect()
            await until(lambda: it.console.viewers, 'it is there')
            it.runs = False
            it.qemu.stop()
            assert b'the guest has stopped' in await reader.read()
            await it.task
            with pytest.raises(ConnectionRefusedError):
                await it.connect()
    run(test)


def test_a_guest_that_is_gone_between_event_and_connection() -> None:
    async def test() -> None:
        async with lab(serve=False) as it:
            it.runs = False
            await it.task
            assert it.console._server is None
    run(test)


def test_the_port_of_another_guest_is_not_served(monkeypatch) -> None:
    """It was given the TCP port while the relay connected."""
    async def test() -> None:
        async with lab(serve=False) as it:
            answers = iter([True, False])

            async def is_there(_: SerialPort) -> bool:
                return next(answers)
            it.shared.is_there = is_there
            await it.task
            assert it.console._server is None
    run(test)


def test_qemu_closes_the_connection_and_the_guest_runs() -> None:
    """As when a dead log is brought back: the viewers stay."""
    async def test() -> None:
        async with lab(b'before\n') as it:
            reader, writer = await it.connect()
            assert await reader.readline() == b'before\n'
            it.qemu.drop()
            assert b'was lost' in await reader.readuntil(b']\r\n')
            await until(lambda: it.qemu.connections == 2, 'it is back')
            it.qemu.write(b'after\n')
            assert await reader.readline() == b'after\n'
            writer.write(b'x')
            await until(lambda: it.qemu.got == b'x', 'it is typed')
    run(test)


def test_the_outer_port_is_taken(caplog, monkeypatch) -> None:
    """It is said once, and served once it is free; the guest goes on."""
    monkeypatch.setattr(console, '_LONGEST_PAUSE', 0.05)

    async def test() -> None:
        with socket.socket() as taken:
            taken.bind((OUTER, 0))
            taken.listen()
            async with lab(service=taken.getsockname()[1],
                           serve=False) as it:
                await until(lambda: caplog.messages, 'it is said')
                it.qemu.write(b'on\n')
                await until(lambda: it.console.counts.written == 3, 'read')
                await asyncio.sleep(0.2)
                taken.close()
                await it.served()
                reader, _ = await it.connect()
                assert await reader.readline() == b'on\n'
    run(test)
    (said,) = caplog.messages
    assert 'somebody else listens' in said
    assert 'ss -ltnp' in said


def test_nothing_listens_on_the_loopback_address(caplog) -> None:
    """It is said once; it is looked for until the guest is gone."""
    async def test() -> None:
        async with lab(serve=False) as it:
            it.qemu.stop()
            it.shared.settings = dataclasses.replace(
                it.shared.settings, guest_address='127.77.0.99')
            await until(lambda: caplog.messages, 'it is said')
            await asyncio.sleep(0.3)
            it.runs = False
            await until(it.task.done, 'it ends')
    run(test)
    (said,) = caplog.messages
    assert '127.77.0.99' in said
    assert 'uuid' in said


def test_viewers_are_told_that_the_relay_ends() -> None:
    async def test() -> None:
        async with lab() as it:
            reader, _ = await it.connect()
            await until(lambda: it.console.viewers, 'it is there')
            it.task.cancel()
            assert b'the relay ends' in await reader.read()
            await until(it.task.done, 'it ends')
    run(test)
