# SPDX-License-Identifier: Apache-2.0
"""libvirt's events tell which guests this host has.

libvirt is asked in a thread of its own, with an asyncio loop that is its
alone: a libvirtd that hangs then keeps nobody else waiting. What may hang is
asked in turns (virtlogd/turns.py), so that it is told of all other guests
while libvirt does not answer for one.
"""

import asyncio
import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import libvirt
import libvirtaio

from virtlogd_driver import exception
from virtlogd_driver.node.hypervisor import is_booted, translated
from virtlogd_driver.virtlogd.turns import Turns

LOG = logging.getLogger(__name__)

#: Seconds until libvirt is tried again.
_PAUSE = 5.0
#: Seconds between two questions whether libvirtd is there, and how many may
#: stay without an answer.
_KEEPALIVE = 5, 5
#: Seconds that libvirt has to answer for one guest, until it is told of the
#: others; and for what is not of one guest.
PATIENCE, LONGEST = 5.0, 30.0


@dataclass(frozen=True, slots=True)
class Running:
    """A guest runs; or it is shut off, where such guests are wanted, too."""

    uuid: str
    name: str
    #: libvirt's number of this run of it; -1: it does not run.
    run: int
    xml: str
    #: False: it went on from where it was, as it was migrated here or
    #: restored, where that is wanted (Watch).
    booted: bool = True


@dataclass(frozen=True, slots=True)
class Report:
    """A report says what libvirt has."""

    #: By UUID; None: libvirt does not answer.
    guests: dict[str, Running] | None
    #: UUIDs of those that were looked at just now; None: all.
    looked_at: frozenset[str] | None
    #: Why libvirt does not answer.
    error: str = ''
    #: UUIDs of those that libvirt has, but has not told of yet.
    unknown: frozenset[str] = frozenset()
    #: UUIDs of those that libvirt does not answer for: they are as they were.
    unanswered: frozenset[str] = frozenset()

    def tells_of(self, uuid: str) -> bool:
        """Tell whether libvirt was asked just now for a guest, and answered.

        Also where it answers that there is none.
        """
        return (self.guests is not None and uuid not in self.unanswered
                and (self.looked_at is None or uuid in self.looked_at))


class _Question:
    """libvirt is asked something, in a turn."""

    #: All of them are to one daemon, as to one file system.
    path = '/libvirt'
    size = 0

    def __init__(self, function: Callable[..., Any], *arguments: Any,
                 uuid: str = '') -> None:
        """
        :param uuid: of the guest that it is about; '': of none
        """
        self._function = function
        self._arguments = arguments
        self.uuid = uuid
        self._answer: Callable[[], Any] | None = None

    def turn(self) -> None:
        try:
            answer = self._function(*self._arguments)
        except Exception as error:
            self._answer = functools.partial(_raise, error)
        else:
            self._answer = lambda: answer

    @property
    def answered(self) -> bool:
        return self._answer is not None

    def answer(self) -> Any:
        """Give the answer.

        :raises Exception: what was raised instead
        """
        assert self._answer is not None
        return self._answer()


def _raise(error: Exception) -> None:
    raise error


class Watch:
    """Looks at a guest when something happens to it, at all now and then."""

    def __init__(self, uri: str, interval: float,
                 report: Callable[[Report], None], *,
                 everything: bool = False) -> None:
        """
        :param uri: of libvirt
        :param interval: seconds from one look at all guests to the next
        :param report: is given what was seen, in the thread of the watch
        :param everything: guests that do not run are reported as well, and
            how those that do came to run
        """
        self._uri = uri
        self._interval = interval
        self._report = report
        self._everything = everything
        self._changed: set[str] = set()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._guests: dict[str, Running] = {}
        #: Guests that libvirt has not answered for yet.
        self._questions: dict[str, _Question] = {}
        #: UUIDs of those of which nothing is known for that.
        self._untold: set[str] = set()
        #: UUIDs of those that were migrated away.
        self._moved: set[str] = set()
        #: UUIDs of those that libvirt fails for, until they are looked at
        #: again.
        self._failed: set[str] = set()
        self._turns = Turns(self._rouse, 1, patience=PATIENCE)
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
        self._rouse()

    def _rouse(self) -> None:
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
        connection = self._ask(libvirt.openReadOnly, self._uri)
        callback: int | None = None
        try:
            closed: list[int] = []

            def close(_: Any, reason: int, __: Any) -> None:
                closed.append(reason)
                self._wake.set()

            with contextlib.suppress(libvirt.libvirtError):
                # Drivers without a daemon have neither.
                connection.registerCloseCallback(close, None)
                connection.setKeepAlive(*_KEEPALIVE)
            callback = connection.domainEventRegisterAny(
                None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
                self._happened, None)
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
            with contextlib.suppress(libvirt.libvirtError,
                                     exception.HostError):
                self._ask(_close, connection, callback)

    def _happened(self, _: Any, domain: Any, event: int, detail: int,
                  __: Any) -> None:
        """Look at a guest to which something has happened.

        Once one was migrated away libvirt undefines it, and does not say so:
        it may still be there when it is looked at.
        """
        uuid = domain.UUIDString()
        if (event, detail) == (libvirt.VIR_DOMAIN_EVENT_STOPPED,
                               libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED):
            self._moved.add(uuid)
        else:
            self._moved.discard(uuid)
        self.look_at(uuid)

    def _look_again(self, uuid: str) -> None:
        """Look at a guest once more, after a pause."""
        def look() -> None:
            self._failed.discard(uuid)
            self.look_at(uuid)

        if self._loop is not None and uuid not in self._failed:
            self._failed.add(uuid)
            self._loop.call_later(_PAUSE, look)

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Ask libvirt what is not of one guest.

        :raises HostError: it does not answer
        """
        question = _Question(function, *arguments)
        in_time = self._turns.finish(question, LONGEST)
        self._ask_anew()
        if not in_time:
            raise exception.HostError(
                f'libvirt has not answered for {LONGEST:g} s. See whether '
                f'libvirtd (or virtqemud) hangs, and what it waits for.')
        return question.answer()

    def _ask_anew(self) -> None:
        """Look anew at guests whose questions have no turn any more.

        What an earlier connection has answered is old, and who was held back
        makes way for what is not of one guest (Turns.finish).
        """
        for uuid, question in list(self._questions.items()):
            if not self._turns.has(question):
                del self._questions[uuid]
                self.look_at(uuid)

    def _look_at_all(self, connection: Any) -> None:
        with self._lock:
            self._changed.clear()
        domains = {domain.UUIDString(): domain for domain in self._ask(
            connection.listAllDomains, 0 if self._everything
            else libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)}
        self._untold.clear()
        self._moved.intersection_update(domains)
        self._guests = self._look(connection, {
            uuid: functools.partial(_running, domain)
            for uuid, domain in domains.items()})
        self._tell(None)

    def _look_at_changed(self, connection: Any) -> None:
        self._run(())
        with self._lock:
            changed, self._changed = self._changed, set()
        found = self._look(connection, {
            uuid: functools.partial(_looked_up, connection, uuid)
            for uuid in changed})
        for uuid in changed:
            self._guests.pop(uuid, None)
        self._guests |= found
        if changed:
            self._tell(frozenset(changed))

    def _tell(self, looked_at: frozenset[str] | None) -> None:
        """Report what is known now.

        :param looked_at: as of Report
        """
        self._report(Report(dict(self._guests), looked_at,
                            unknown=frozenset(self._untold),
                            unanswered=frozenset(self._questions)))

    def _run(self, questions: Collection[_Question]) -> None:
        """Ask, and look anew at guests of which it was asked long ago."""
        asked = set(questions)
        for question in self._turns.run(questions, lambda: False):
            if (isinstance(question, _Question) and question not in asked
                    and self._questions.get(question.uuid) is question):
                del self._questions[question.uuid]
                self.look_at(question.uuid)

    def _look(self, connection: Any, looks: Mapping[str, Callable[
            [Running | None, bool], Running | None]]) -> dict[str, Running]:
        """Look at guests; those that are not wanted, or gone, are left out.

        One that libvirt fails for, or does not answer for, stays as it was,
        and ends nothing of the others. It is looked at again.

        :param looks: by UUID, gives a guest as it is, from what it was and
            whether everything is wanted
        """
        new = {uuid: _Question(look, self._guests.get(uuid),
                               self._everything, uuid=uuid)
               for uuid, look in looks.items()
               if uuid not in self._questions}
        self._questions |= new
        self._run(new.values())
        found = {}
        for uuid in looks:
            guest, told = self._guests.get(uuid), False
            question = self._questions.get(uuid)
            if question is not None and question.answered:
                del self._questions[uuid]
                try:
                    guest, told = question.answer(), True
                except exception.HostError as error:
                    if not connection.isAlive():
                        raise
                    LOG.debug('%s', error)
                    self._look_again(uuid)
            if guest is not None and guest.run < 0 and uuid in self._moved:
                guest = None
            if guest is not None:
                found[uuid] = guest
            if guest is None and not told:
                self._untold.add(uuid)
            else:
                self._untold.discard(uuid)
        return found


def _close(connection: Any, callback: int | None) -> None:
    """Close a connection, which its callbacks would keep open."""
    if callback is not None:
        with contextlib.suppress(libvirt.libvirtError):
            connection.domainEventDeregisterAny(callback)
    with contextlib.suppress(libvirt.libvirtError):
        connection.unregisterCloseCallback()
    connection.close()


def _looked_up(connection: Any, uuid: str, known: Running | None,
               everything: bool) -> Running | None:
    """Give a guest as it is now; None where it is not wanted, or gone."""
    with contextlib.suppress(exception.GuestNotFound), translated():
        return _running(connection.lookupByUUIDString(uuid), known,
                        everything)
    return None


def _running(domain: Any, known: Running | None,
             everything: bool) -> Running | None:
    """Give a domain as it is now; None where it is not wanted, or gone.

    :param known: what it was
    """
    with contextlib.suppress(exception.GuestNotFound), translated():
        run = domain.ID()
        # One that is not persistent, and has stopped, is about to vanish,
        # and libvirt does not say so.
        if run < 0 and not (everything and domain.isPersistent()):
            return None
        if known is not None and known.run == run:
            booted = known.booted
        else:
            booted = not everything or run < 0 or is_booted(domain)
        return Running(domain.UUIDString(), domain.name(), run,
                       domain.XMLDesc(), booted)
    return None
