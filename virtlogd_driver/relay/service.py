# SPDX-License-Identifier: Apache-2.0
"""The relay of one host has a console for each serial port of its guests."""

import asyncio
import contextlib
import copy
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from virtlogd_driver import exception
from virtlogd_driver.console_log.log import LogRead
from virtlogd_driver.guest import char_device
from virtlogd_driver.node.events import Report, Running, Watch
from virtlogd_driver.relay import control, metrics
from virtlogd_driver.relay.console import Console, Counts, SerialPort, Shared
from virtlogd_driver.relay.notify import notify, watchdog_interval
from virtlogd_driver.relay.settings import Settings

LOG = logging.getLogger(__name__)

#: Seconds between two looks at the viewers, and from one metrics file to the
#: next.
_LOOK = 1.0
_METRICS = 15.0
#: Seconds to wait for a viewer that has connected, as it says, and has not
#: been seen yet; and between two looks for it.
_SEEN, _PAUSE = 2.0, 0.02

#: Reads the newest bytes of a log, given its path and how many; LogError where
#: it cannot.
ReadTail = Callable[[str, int], LogRead]


_T = TypeVar('_T')


def in_thread(function: Callable[..., _T], *arguments: Any,
              ) -> 'asyncio.Future[_T]':
    """Have something done in a thread: a disk may stall, a helper may hang.

    In one of its own, as what does not return keeps it; so the relay's end
    waits for none, either (as asyncio's own threads would).
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[_T] = loop.create_future()

    def end(give: Callable[[Any], None], what: object) -> None:
        if not answer.done():
            give(what)

    def run() -> None:
        give: Callable[[Any], None] = answer.set_result
        what: object
        try:
            what = function(*arguments)
        except Exception as error:
            give, what = answer.set_exception, error
        # The relay may have ended.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(end, give, what)

    threading.Thread(target=run, name=function.__name__, daemon=True).start()
    return answer


class _Reads:
    """Logs are read in threads, one log in one at a time."""

    def __init__(self, read_tail: ReadTail) -> None:
        self._read_tail = read_tail
        self._under_way: set[str] = set()

    async def read(self, path: str, limit: int) -> LogRead:
        """Read the newest bytes of a log.

        :raises LogError: see :func:`log.read_tail`; or the read before has
            not returned
        """
        if path in self._under_way:
            raise exception.LogError(
                f'{path}: the read before has not returned.')
        self._under_way.add(path)
        try:
            reading = in_thread(self._read, path, limit)
        except RuntimeError as error:   # there can be no more threads
            self._under_way.discard(path)
            raise exception.LogError(f'{path}: {error}') from error
        return await reading

    def _read(self, path: str, limit: int) -> LogRead:
        try:
            return self._read_tail(path, limit)
        finally:
            self._under_way.discard(path)


async def _live(interval: float) -> None:
    """Give systemd's watchdog signs of life; in seconds."""
    while True:
        notify('WATCHDOG=1')
        await asyncio.sleep(interval)


class Relay:
    """The relay has all consoles of a host."""

    def __init__(self, settings: Settings, metrics_file: str | None,
                 control_socket: str, read_tail: ReadTail) -> None:
        """
        :param metrics_file: path of the file for Prometheus; None: there is
            none
        :param control_socket: path of what it is asked through
        :param read_tail: reads the newest bytes of a log, and may block
        """
        self._control_socket = control_socket
        self._metrics = (None if metrics_file is None
                         else metrics.File(metrics_file))
        self._shared = Shared(settings, _Reads(read_tail).read,
                              self._is_there)
        self._consoles: dict[SerialPort, Console] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ports: frozenset[SerialPort] = frozenset()
        # By UUID; what libvirt says of one guest is read once, not with each
        # report of another.
        self._guests: dict[str, tuple[Running, list[SerialPort]]] = {}
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
        if self._metrics is not None:
            keeping.append(loop.create_task(self._measure(self._metrics)))
        made = control.listen(self._control_socket)
        if made is not None:
            keeping.append(loop.create_task(
                control.serve(made, self._turn)))
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
        self._guests = {uuid: self._know(guest)
                        for uuid, guest in found.guests.items()}
        self._ports = frozenset(
            port for _, ports in self._guests.values() for port in ports)
        for port in self._consoles.keys() - self._ports:
            self._consoles[port].look_anew.set()
        for port in self._ports - self._consoles.keys():
            self._begin(port)
        for uuid in list(self._waiting):
            if found.tells_of(uuid):
                self._waiting.pop(uuid).set_result(None)

    def _know(self, guest: Running) -> tuple[Running, list[SerialPort]]:
        known = self._guests.get(guest.uuid)
        if known is not None and known[0] == guest:
            return known
        return guest, _ports(guest, self._shared.settings.guest_address)

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

    async def _turn(self, request: control.Request) -> None:
        """Do what is asked for: see :mod:`control`.

        :raises HostError: there is no such viewer
        """
        deadline = time.monotonic() + _SEEN
        while True:
            # As it was before the look: one may have come meanwhile.
            late = time.monotonic() > deadline
            if any(console.turn(request.viewer, request.turn == 'take')
                   for console in self.consoles
                   if console.port.service == request.port):
                return
            if late:
                raise exception.HostError(
                    f'{request.viewer[0]} (port {request.viewer[1]}) is not '
                    f'at the console at TCP port {request.port}')
            await asyncio.sleep(_PAUSE)

    # What is done all the time

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK)
            now = time.monotonic()
            for console in self.consoles:
                console.look(now)

    async def _measure(self, file: metrics.File) -> None:
        """Write the metrics; guests do not wait for that."""
        while True:
            try:
                writing = in_thread(
                    file.write, [metrics.see(one) for one in self.consoles],
                    copy.copy(self._past))
            except RuntimeError as error:   # there can be no more threads
                self._say_metrics(file, str(error))
                await asyncio.sleep(_METRICS)
                continue
            _, stalled = await asyncio.wait([writing], timeout=_METRICS)
            if stalled:
                self._say_metrics(file, 'its file system does not answer')
            try:
                await writing
                self._failed_metrics = False
            except OSError as error:
                self._say_metrics(file, error.strerror)
            await asyncio.sleep(_METRICS)

    def _say_metrics(self, file: metrics.File, reason: str | None) -> None:
        if not self._failed_metrics:
            LOG.error('[virtlogd] relay_metrics_file = %s cannot be written '
                      '(%s): see to its directory. It is tried again',
                      file.path, reason)
        self._failed_metrics = True


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
