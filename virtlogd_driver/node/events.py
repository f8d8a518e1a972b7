# SPDX-License-Identifier: Apache-2.0
"""The running guests of this host, as libvirt's events tell of them.

libvirt is asked in a thread of its own, with an asyncio loop that is its
alone: a libvirtd that hangs then keeps nobody else waiting.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import libvirt
import libvirtaio

from virtlogd_driver import exception
from virtlogd_driver.node.hypervisor import translated

LOG = logging.getLogger(__name__)

#: Seconds until libvirt is tried again.
_PAUSE = 5.0
#: Seconds between two questions whether libvirtd is there, and how many may
#: stay without an answer.
_KEEPALIVE = 5, 5


@dataclass(frozen=True, slots=True)
class Running:
    """A guest runs."""

    uuid: str
    name: str
    #: libvirt's number of this run of it.
    run: int
    xml: str


@dataclass(frozen=True, slots=True)
class Report:
    """A report says what libvirt has."""

    #: By UUID; None: libvirt does not answer.
    guests: dict[str, Running] | None
    #: UUIDs of those that were looked at just now; None: all.
    looked_at: frozenset[str] | None
    #: Why libvirt does not answer.
    error: str = ''


class Watch:
    """Looks at a guest when something happens to it, at all now and then."""

    def __init__(self, uri: str, interval: float,
                 report: Callable[[Report], None]) -> None:
        """
        :param uri: of libvirt
        :param interval: seconds from one look at all guests to the next
        :param report: is given what was seen, in the thread of the watch
        """
        self._uri = uri
        self._interval = interval
        self._report = report
        self._changed: set[str] = set()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._guests: dict[str, Running] = {}
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._watch()), name='libvirt',
            daemon=True)

    def start(self) -> None:
        """Begin to report."""
        self._thread.start()

    def look_at(self, uuid: str) -> None:
        """Look at a guest anew, and report; from any thread."""
        with self._lock:
            self._changed.add(uuid)
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):   # it has ended
                self._loop.call_soon_threadsafe(self._wake.set)

    async def _watch(self) -> None:
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        libvirtaio.virEventRegisterAsyncIOImpl()
        # Each error is raised; libvirt would also print it.
        libvirt.registerErrorHandler(lambda *_: None, None)
        while True:
            try:
                with translated():
                    await self._follow()
            except exception.HostError as error:
                self._report(Report(None, None, str(error)))
            await asyncio.sleep(_PAUSE)

    async def _follow(self) -> None:
        """Report until the connection is lost.

        :raises HostError: it is, or cannot be opened
        """
        connection = libvirt.openReadOnly(self._uri)
        try:
            closed: list[int] = []

            def close(_: Any, reason: int, __: Any) -> None:
                closed.append(reason)
                self._wake.set()

            with contextlib.suppress(libvirt.libvirtError):
                # Drivers without a daemon have neither.
                connection.registerCloseCallback(close, None)
                connection.setKeepAlive(*_KEEPALIVE)
            connection.domainEventRegisterAny(
                None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
                lambda _, domain, *__: self.look_at(domain.UUIDString()),
                None)
            while not closed and connection.isAlive():
                self._look_at_all(connection)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._interval):
                        while not closed:
                            await self._wake.wait()
                            self._wake.clear()
                            self._look_at_changed(connection)
            raise exception.HostError(
                'the connection to libvirt was lost. Check that libvirtd (or '
                'virtqemud) is running.')
        finally:
            with contextlib.suppress(libvirt.libvirtError):
                connection.close()

    def _look_at_all(self, connection: Any) -> None:
        with self._lock:
            self._changed.clear()
        found: dict[str, Running] = {}
        for domain in connection.listAllDomains(
                libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
            guest = self._look(connection, domain)
            if guest is not None:
                found[guest.uuid] = guest
        self._guests = found
        self._report(Report(dict(self._guests), None))

    def _look_at_changed(self, connection: Any) -> None:
        with self._lock:
            changed, self._changed = self._changed, set()
        for uuid in changed:
            guest = None
            with contextlib.suppress(exception.GuestNotFound), translated():
                guest = self._look(
                    connection, connection.lookupByUUIDString(uuid))
            if guest is None:
                self._guests.pop(uuid, None)
            else:
                self._guests[uuid] = guest
        if changed:
            self._report(Report(dict(self._guests), frozenset(changed)))

    def _look(self, connection: Any, domain: Any) -> Running | None:
        """Look at one guest; None where it does not run.

        One that libvirt fails for stays as it was, and ends nothing of the
        others.
        """
        try:
            return _running(domain)
        except exception.HostError as error:
            if not connection.isAlive():
                raise
            LOG.debug('%s', error)
            return self._guests.get(domain.UUIDString())


def _running(domain: Any) -> Running | None:
    """Give a domain as it is now; None where it does not run."""
    with contextlib.suppress(exception.GuestNotFound), translated():
        run = domain.ID()
        if run >= 0:
            return Running(domain.UUIDString(), domain.name(), run,
                           domain.XMLDesc())
    return None
