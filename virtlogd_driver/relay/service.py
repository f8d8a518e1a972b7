# SPDX-License-Identifier: Apache-2.0
"""The relay of one host: a console for each serial port of its guests."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable

from virtlogd_driver import exception
from virtlogd_driver.console_log import reader
from virtlogd_driver.console_log.log import LogRead
from virtlogd_driver.guest import char_device
from virtlogd_driver.node.events import Report, Running, Watch
from virtlogd_driver.relay import metrics
from virtlogd_driver.relay.console import Console, Counts, SerialPort, Shared
from virtlogd_driver.relay.notify import notify, watchdog_interval
from virtlogd_driver.relay.settings import Settings

LOG = logging.getLogger(__name__)

#: Seconds between two looks at the viewers, and from one metrics file to the
#: next.
_LOOK = 1.0
_METRICS = 15.0


class _Reads:
    """Logs are read in threads: a disk may stall, and a helper may hang.

    Each read has its own, as one that does not return keeps it; so the
    relay's end waits for none, either (as asyncio's own threads would).
    """

    def __init__(self) -> None:
        self._under_way: set[str] = set()

    async def read(self, path: str, limit: int) -> LogRead:
        """Read the newest bytes of a log.

        :raises LogError: see :func:`reader.read_tail`; or the read before has
            not returned
        """
        if path in self._under_way:
            raise exception.LogError(
                f'{path}: the read before has not returned.')
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[LogRead] = loop.create_future()

        def end(read: LogRead | None, error: BaseException | None) -> None:
            self._under_way.discard(path)
            if answer.done():
                return
            if read is None:
                assert error is not None
                answer.set_exception(error)
            else:
                answer.set_result(read)

        def run() -> None:
            read, error = None, None
            try:
                read = reader.read_tail(path, limit)
            except Exception as e:
                error = e
            # The relay may have ended.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(end, read, error)

        self._under_way.add(path)
        threading.Thread(target=run, name='log', daemon=True).start()
        return await answer


async def _live(interval: float) -> None:
    """Give systemd's watchdog signs of life; in seconds."""
    while True:
        notify('WATCHDOG=1')
        await asyncio.sleep(interval)


class Relay:
    """The relay has all consoles of a host."""

    def __init__(self, settings: Settings, metrics_file: str | None) -> None:
        """
        :param metrics_file: path of the file for Prometheus; None: there is
            none
        """
        self._metrics_file = metrics_file
        self._shared = Shared(settings, _Reads().read, self._is_there)
        self._consoles: dict[SerialPort, Console] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ports: frozenset[SerialPort] = frozenset()
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._watch: Watch | None = None
        self._error = ''
        self._failed_metrics = False
        # Of consoles that are gone.
        self._past = Counts()

    async def run(self, watch: Callable[[Callable[[Report], None]], Watch],
                  ending: asyncio.Event) -> None:
        """Serve until it is to end.

        :param watch: makes what tells of guests, from where that reports to
        :param ending: is set when the relay is to end
        """
        loop = asyncio.get_running_loop()

        def report(found: Report) -> None:
            with contextlib.suppress(RuntimeError):   # the loop has ended
                loop.call_soon_threadsafe(self.reported, found)

        self._watch = watch(report)
        self._watch.start()
        keeping = [loop.create_task(self._look())]
        interval = watchdog_interval()
        if interval is not None:
            keeping.append(loop.create_task(_live(interval)))
        if self._metrics_file is not None:
            keeping.append(loop.create_task(self._measure()))
        notify('READY=1')
        ended = loop.create_task(ending.wait())
        try:
            done, _ = await asyncio.wait(
                [ended, *keeping], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()   # what it failed of
        finally:
            notify('STOPPING=1')
            tasks = [*keeping, ended, *self._tasks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def reload(self, settings: Settings) -> None:
        """Go on with other options; those of addresses need a restart."""
        notify(f'RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}')
        now = self._shared.settings
        if (settings.address, settings.guest_address) != (
                now.address, now.guest_address):
            LOG.warning('[serial_console] proxyclient_address and [virtlogd] '
                        'relay_guest_address count once the relay is '
                        'restarted')
        self._shared.settings = settings.with_addresses_of(now)
        notify('READY=1')
        LOG.info('The options were read again')

    # Which consoles there are

    def reported(self, found: Report) -> None:
        """Follow what libvirt has answered."""
        if found.guests is None:
            if found.error != self._error:
                LOG.error('New guests are not seen: %s Viewers of the others '
                          'stay.', found.error)
            self._error = found.error
            return
        if self._error:
            LOG.info('libvirt answers again')
        self._error = ''
        self._ports = frozenset(
            port for guest in found.guests.values()
            for port in _ports(guest, self._shared.settings.guest_address))
        for port in self._ports - self._consoles.keys():
            self._begin(port)
        for uuid in list(self._waiting):
            if found.looked_at is None or uuid in found.looked_at:
                self._waiting.pop(uuid).set_result(None)

    async def _is_there(self, port: SerialPort) -> bool:
        """Ask libvirt anew; wait until it answers."""
        if self._watch is None:
            return False
        future = self._waiting.get(port.guest)
        if future is None:
            future = asyncio.get_running_loop().create_future()
            self._waiting[port.guest] = future
        self._watch.look_at(port.guest)
        await asyncio.shield(future)
        return port in self._ports

    def _begin(self, port: SerialPort) -> None:
        console = self._consoles[port] = Console(port, self._shared)
        task = asyncio.get_running_loop().create_task(
            self._serve(console), name=str(port))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, console: Console) -> None:
        try:
            await console.run()
        except Exception:
            # Of one console alone; the next look begins it anew.
            LOG.exception('The relay of %s failed', console.port)
        finally:
            del self._consoles[console.port]
            self._past.add(console.counts)

    @property
    def consoles(self) -> list[Console]:
        """Give those that there are now."""
        return list(self._consoles.values())

    # What is done all the time

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK)
            now = time.monotonic()
            for console in self.consoles:
                console.look(now)

    async def _measure(self) -> None:
        while True:
            try:
                metrics.write(str(self._metrics_file), self.consoles,
                              self._past)
                self._failed_metrics = False
            except OSError as error:
                if not self._failed_metrics:
                    LOG.error('[virtlogd] relay_metrics_file = %s cannot be '
                              'written (%s): see to its directory. It is '
                              'tried again', self._metrics_file,
                              error.strerror)
                self._failed_metrics = True
            await asyncio.sleep(_METRICS)


def _ports(guest: Running, address: str) -> list[SerialPort]:
    """Give the serial ports of a guest that the relay is to be at."""
    try:
        devices = char_device.parse(guest.xml)
    except exception.InvalidGuestXML as error:
        LOG.warning('The consoles of guest %s (%s) are not relayed: %s',
                    guest.uuid, guest.name, error)
        return []
    return [SerialPort(guest.uuid, guest.name, guest.run, device.number,
                       device.address[1], device.log_file)
            for device in devices
            if device.address is not None and device.address[0] == address]
