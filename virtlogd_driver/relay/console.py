# SPDX-License-Identifier: Apache-2.0
"""A console is one serial port of a running guest, with all who look at it.

The relay is the one client that QEMU serves. What QEMU sends is always read,
whatever the viewers do.
"""

import asyncio
import contextlib
import dataclasses
import errno
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import cast

from virtlogd_driver import exception
from virtlogd_driver.console_log.log import LogRead, Position
from virtlogd_driver.relay import context
from virtlogd_driver.relay.settings import Settings
from virtlogd_driver.relay.viewer import Peer, Viewer
from virtlogd_driver.relay.writers import Writers

LOG = logging.getLogger(__name__)

#: Seconds for a connection to this host; between attempts at first, at most,
#: and from which on it is said: a guest that just ends is not reached, either.
_CONNECT = 5.0
_PAUSE, _LONGEST_PAUSE, _SAID_FROM = 0.1, 5.0, 0.5
#: Seconds to find out where the log ends and what is live begins, and between
#: two looks at the log; and how many looks there are at least, as the host may
#: be busy: two tell that the guest is quiet.
_SEAM, _SEAM_PAUSE, _LOOKS = 1.0, 0.05, 3
#: QEMU sends each byte by itself. What follows other output within so many
#: seconds is gathered for as long, in the kernel: to be woken for each byte,
#: and to wake each viewer, takes a core from the guest.
_GATHER = 0.002
#: Seconds that viewers have to take the last line.
_FAREWELL = 2.0
#: What waits for a guest that does not read, in bytes, until its viewers'
#: input is left with them.
_TYPED_AHEAD = 64 * 1024
#: Messages that are not said again.
_REMEMBERED = 100


@dataclass(frozen=True, slots=True)
class SerialPort:
    """The relay is to be at this serial port."""

    #: UUID of the guest.
    guest: str
    #: libvirt's name of it.
    name: str
    #: libvirt's number of this run of the guest.
    run: int
    #: Number of the serial port, from 0.
    number: int
    #: The TCP port: of the guest's loopback address, and of the relay.
    service: int
    #: Path of the log; None: it has none.
    log: str | None

    def __str__(self) -> str:
        return f'guest {self.guest} ({self.name}), serial port {self.number}'


@dataclass(slots=True)
class Counts:
    """Counts say what became of a port's bytes and viewers so far."""

    written: int = 0
    typed: int = 0
    dropped: int = 0
    viewers: int = 0
    refused: int = 0
    disconnected: int = 0

    def add(self, other: 'Counts') -> None:
        """Count what another counted as well."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name)
                    + getattr(other, field.name))


@dataclass(slots=True)
class Shared:
    """All consoles of a host have this in common."""

    settings: Settings
    #: Reads the newest bytes of a log; LogError where it cannot be read.
    read_log: Callable[[str, int], Awaitable[LogRead]]
    #: Whether libvirt, asked anew, has this port of a guest that runs.
    is_there: Callable[[SerialPort], Awaitable[bool]]
    #: Viewers of all consoles now.
    viewers: int = 0


class _Guest(asyncio.Protocol):
    """The relay is connected to QEMU."""

    def __init__(self, console: 'Console') -> None:
        self._console = console
        self._loop = asyncio.get_running_loop()
        self._last = 0.0
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=_TYPED_AHEAD)

    def data_received(self, data: bytes) -> None:
        self._console.written(data)
        now = self._loop.time()
        if now - self._last < 2 * _GATHER:
            self.transport.pause_reading()
            self._loop.call_later(_GATHER, self._read_on)
        self._last = now

    def _read_on(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()

    def pause_writing(self) -> None:
        self._console.take_input(False)

    def resume_writing(self) -> None:
        self._console.take_input(True)


class Console:
    """A console is a serial port of a guest with its viewers."""

    def __init__(self, port: SerialPort, shared: Shared) -> None:
        self.port = port
        self.counts = Counts()
        self._shared = shared
        self._guest: _Guest | None = None
        self._takes_input = True
        self._viewers: list[Viewer] = []
        # Those that are only told why they may not stay.
        self._refused: set[Viewer] = set()
        self._writers: Writers[Viewer] = Writers(shared.settings.writers)
        self._recent = context.Recent(shared.settings.context_size)
        # The log as it was before QEMU was connected to.
        self._before: LogRead | None = None
        self._server: asyncio.Server | None = None
        self._said: set[str] = set()
        #: Set where libvirt may have this run of the guest no more: its TCP
        #: port may be the next one's.
        self.look_anew = asyncio.Event()

    # Life

    async def run(self) -> None:
        """Be at the console until the guest, or this run of it, is over.

        It is cancelled to end earlier.
        """
        text = 'the guest has stopped, or moved to another host'
        try:
            while (guest := await self._connect()) is not None:
                try:
                    # Another guest may have been given the TCP port.
                    if not await self._shared.is_there(self.port):
                        break
                    await self._find_context(guest)
                    await self._serve(guest)
                finally:
                    self._guest = None
                    guest.transport.abort()
                for viewer in self._viewers:
                    viewer.say('the connection to the guest was lost, output '
                               'may be missing here; it is in the log')
        except asyncio.CancelledError:
            text = 'the relay ends, connect again later'
            raise
        finally:
            await self._end(text)

    async def _connect(self) -> _Guest | None:
        """Connect to QEMU as soon as it listens.

        :returns: None once the guest is gone
        """
        settings, pause = self._shared.settings, _PAUSE
        while await self._shared.is_there(self.port):
            self._before = await self._read_log()
            self._recent = context.Recent(settings.context_size)
            try:
                async with asyncio.timeout(_CONNECT):
                    _, guest = await asyncio.get_running_loop(
                        ).create_connection(
                            lambda: _Guest(self), settings.guest_address,
                            self.port.service)
            except (OSError, TimeoutError) as error:
                if pause >= _SAID_FROM:
                    self._say_once(
                        f'cannot be reached on {settings.guest_address}:'
                        f'{self.port.service} ({_reason(error)}). It is '
                        f'tried again; see whether the guest runs, and '
                        f'whether the loopback interface is up')
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self.look_anew.wait()
                self.look_anew.clear()
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            self._guest, self._takes_input = guest, True
            return guest
        return None

    async def _serve(self, guest: _Guest) -> None:
        """Let viewers in until QEMU closes the connection."""
        self.take_input(self._takes_input)
        address = self._shared.settings.address
        while self._server is None and not guest.lost.is_set():
            try:
                self._server = await asyncio.get_running_loop().create_server(
                    lambda: Viewer(self, self._shared.settings.buffer_size),
                    address, self.port.service)
            except OSError as error:
                self._say_once(_cannot_listen(
                    address, self.port.service, error))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LONGEST_PAUSE):
                        await guest.lost.wait()
        await guest.lost.wait()

    async def _end(self, text: str) -> None:
        if self._server is not None:
            self._server.close()
        for viewer in list(self._viewers):
            viewer.end(text)
        deadline = time.monotonic() + _FAREWELL
        while self._viewers and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for viewer in list(self._viewers):
            viewer.abort()

    def _say_once_refused(self, host: str) -> None:
        if len(self._said) < _REMEMBERED and host not in self._said:
            self._said.add(host)
            LOG.warning(
                '%s may not see the console of %s, as it is not in [virtlogd] '
                'relay_allowed: it was refused. If it runs nova-serialproxy, '
                'add it and reload the relay', host, self.port)

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            LOG.error('The interactive console of %s %s.', self.port, text)

    # What viewers see that have just come

    async def _read_log(self) -> LogRead | None:
        """Give the end of the log; None where it cannot be read just now."""
        if self.port.log is None:
            return None
        size = self._shared.settings.context_size
        try:
            async with asyncio.timeout(_SEAM):
                return await self._shared.read_log(self.port.log, 2 * size)
        except (exception.LogError, TimeoutError) as error:
            LOG.debug('The log of %s is not read: %s', self.port, error)
            return None

    async def _find_context(self, guest: _Guest) -> None:
        """Put what the log has in front of what came live."""
        size = self._shared.settings.context_size
        deadline = time.monotonic() + _SEAM
        last: tuple[Position | None, int] | None = None
        looks = 0
        while ((looks < _LOOKS or time.monotonic() < deadline)
               and len(self._recent) < size and not guest.lost.is_set()):
            looks += 1
            read = await self._read_log()
            if read is None:
                break
            # All that was logged until then has been sent before.
            await asyncio.sleep(0.01)
            live = self._recent.data
            now = read.position, len(live)
            found = context.earlier(
                read.data, live, _logged_since(self._before, read),
                settled=now == last)
            if found is not None:
                self._recent.begin_with(
                    found, not read.exact or len(read.data) >= 2 * size)
                return
            last = now
            await asyncio.sleep(_SEAM_PAUSE)
        self._recent.begin_with(b'', cut=True)
        LOG.debug('Viewers of %s see what it writes from now on', self.port)

    # What happens at the two ends

    def written(self, data: bytes) -> None:
        """Note that the guest has written something."""
        self.counts.written += len(data)
        self._recent.add(data)
        for viewer in self._viewers:
            viewer.show(data)

    def joined(self, viewer: Viewer) -> None:
        """Note that a viewer has connected: see :class:`viewer.Console`."""
        settings, host = self._shared.settings, viewer.peer[0]
        if not settings.may_connect(host):
            self.counts.refused += 1
            self._say_once_refused(host)
            viewer.abort()
            return
        if (len(self._viewers) >= settings.port_viewers
                or self._shared.viewers >= settings.host_viewers):
            self.counts.refused += 1
            self._refused.add(viewer)
            viewer.end('there are too many viewers, try again later')
            return
        self._viewers.append(viewer)
        self._shared.viewers += 1
        self.counts.viewers += 1
        self._writers.join(viewer)
        viewer.show(self._recent.text())
        writer = self._writers.writer
        if writer is not None and writer is not viewer:
            viewer.say(f'you only watch, {_name(writer)} types')
        if not self._takes_input:
            viewer.read_on(False)

    def left(self, viewer: Viewer) -> None:
        """Note that a viewer's connection is over."""
        self._refused.discard(viewer)
        if viewer not in self._viewers:
            return
        self._viewers.remove(viewer)
        self._shared.viewers -= 1
        self.counts.dropped += viewer.dropped
        self._now_types(self._writers.leave(viewer))

    def turn(self, peer: Peer, take: bool) -> bool:
        """Let a viewer type from now on, or only watch.

        :param peer: the viewer's address and TCP port
        :returns: whether it is there
        """
        for viewer in self._viewers:
            if viewer.peer != peer:
                continue
            if not take:
                self._now_types(self._writers.leave(viewer))
                return True
            before = self._writers.take(viewer)
            if before is not None:
                before.say(f'you only watch, {_name(viewer)} types now')
                self._now_types(viewer)
            return True
        return False

    def typed(self, viewer: Viewer, data: bytes) -> None:
        """Note that a viewer has typed something."""
        if (self._guest is not None and self._writers.may_type(viewer)
                and not self._guest.transport.is_closing()):
            self.counts.typed += len(data)
            self._guest.transport.write(data)

    def take_input(self, on: bool) -> None:
        """Note whether the guest takes what is typed, for now."""
        self._takes_input = on
        for viewer in self._viewers:
            viewer.read_on(on)

    def look(self, now: float) -> None:
        """Disconnect who takes nothing; called every second or so."""
        for viewer in [*self._viewers, *self._refused]:
            silent = viewer.look(now, self._shared.settings.viewer_timeout)
            if silent:
                self.counts.disconnected += 1
                LOG.info('Viewer %s of %s took nothing for %.0f s: it was '
                         'disconnected', _name(viewer), self.port, silent)

    # What is measured

    @property
    def viewers(self) -> list[tuple[Viewer, bool]]:
        """Tell who is there, and whether it may type."""
        return [(viewer, self._writers.may_type(viewer))
                for viewer in self._viewers]

    @property
    def dropped(self) -> int:
        """Count the bytes that viewers, gone ones too, were too slow for."""
        return self.counts.dropped + sum(v.dropped for v in self._viewers)

    @staticmethod
    def _now_types(viewer: Viewer | None) -> None:
        if viewer is not None:
            viewer.say('you may type now')


def _name(viewer: Viewer) -> str:
    host, number = viewer.peer
    return f'{host} (port {number})'


def _reason(error: OSError | TimeoutError) -> str:
    if isinstance(error, TimeoutError):
        return 'no answer'
    return error.strerror or str(error)


def _cannot_listen(address: str, service: int, error: OSError) -> str:
    where = f'{address}:{service}'
    if error.errno == errno.EADDRINUSE:
        return (f'cannot be offered on {where}, as somebody else listens '
                f'there: see "ss -ltnp sport = {service}", and end it or '
                f'stop and start the guest, which gives it another port. It '
                f'is tried again')
    return (f'cannot be offered on {where} ({error.strerror}): set '
            f'[serial_console] proxyclient_address to an address of this '
            f'host, or wait until it has this one. It is tried again')


def _logged_since(before: LogRead | None, now: LogRead) -> int:
    """Give the bytes that were logged between two reads, at most."""
    if before is None or before.position is None or now.position is None:
        return len(now.data)
    one, other = before.position, now.position
    if ((one.device, one.inode) != (other.device, other.inode)
            or other.offset < one.offset):   # rotated, or truncated
        return len(now.data)
    return other.offset - one.offset
