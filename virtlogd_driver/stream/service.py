# SPDX-License-Identifier: Apache-2.0
"""A stream reads the logs of all guests of a host, also of those that come.

One thread writes. While who takes the lines does not, it waits: nothing is
held but what was read last, and no guest waits for it. It touches no disk:
guests take turns at that (turns.py), so that none waits for another's. libvirt
and virtlogd are asked in threads of their own, of which the newest answer
stands.
"""

import contextlib
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol

from virtlogd_driver import exception
from virtlogd_driver.console_log.follow import Follower
from virtlogd_driver.console_log.log import Position
from virtlogd_driver.guest import char_device, metadata
from virtlogd_driver.node.events import Report, Running
from virtlogd_driver.stream import objects, state
from virtlogd_driver.stream.guest import (
    CHUNK,
    ENOUGH,
    Followed,
    Guest,
    Job,
    Logs,
    PortNow,
    Said,
)
from virtlogd_driver.stream.lines import QUIET
from virtlogd_driver.stream.objects import Source
from virtlogd_driver.stream.port import PortStream, Sink
from virtlogd_driver.stream.state import Key, Progress
from virtlogd_driver.virtlogd.turns import Turns

LOG = logging.getLogger(__name__)

#: Seconds to let more bytes come before they are read.
_GATHER = 0.02
#: Seconds between two reads of a log that has little.
_PACE = 0.5
#: Seconds between two looks at files that the kernel watches.
_COMPARE = 10.0
#: Seconds from one state file to the next; and of the first and the last one
#: at most.
SAVE_INTERVAL, _SAVE_LAST = 5.0, 5.0
#: Seconds that a guest may be unknown to libvirt while its log is in its
#: place: nova undefines it in a hard reboot.
_PATIENCE = 30.0
#: Seconds from which on it is said that a disk does not answer.
STALLED = 5.0
#: Logs of guests that have left that are remembered, should one come back.
MOST_LEFT = 1000
#: Seconds of the longest wait for something to happen.
_LOOK = 1.0


class Output(Protocol):
    """An output is where all that serial ports give is written."""

    def sink(self, source: Source, waiting: list[str]) -> Sink:
        """Give a sink for a serial port.

        :param waiting: it adds to this what it is given
        """

    def event(self, event: str, time: float, message: str) -> str:
        """Give what is of the host, and of no guest."""

    def write(self, waiting: list[str]) -> None:
        """Write what sinks were given, however long that takes.

        :raises OSError: nobody takes it any more
        """


class News:
    """News come from other threads, and end the wait of the stream's."""

    def __init__(self) -> None:
        self.wake, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._lock = threading.Lock()
        self._report: Report | None = None
        #: Guests of the last report that was not taken; and those that came
        #: and left in such reports, by UUID.
        self._untaken: Mapping[str, Running] = {}
        self._passed: dict[str, Running] = {}
        self._states: tuple[str, dict[str, str]] | None = None
        self.ending = False

    def reported(self, report: Report) -> None:
        """Take what libvirt has answered."""
        with self._lock:
            self._report = report
            if report.guests is not None:
                self._passed |= self._untaken
                for uuid in report.guests.keys() & self._passed.keys():
                    del self._passed[uuid]
                for uuid in list(self._passed)[:-MOST_LEFT]:
                    del self._passed[uuid]
                self._untaken = report.guests
        self.nudge()

    def asked(self, reason: str, states: dict[str, str]) -> None:
        """Take what virtlogd has answered.

        :param reason: why it does not; empty: it does
        :param states: what becomes of logs, by path (Host.log_states)
        """
        with self._lock:
            self._states = reason, states
        self.nudge()

    def end(self) -> None:
        """Have the stream end."""
        self.ending = True
        self.nudge()

    def nudge(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._write, b'\0')

    def take(self) -> tuple[
            Report | None, dict[str, Running],
            tuple[str, dict[str, str]] | None]:
        """Give the newest of each, once.

        And of the guests that libvirt has told of since, and does not any
        more, what it has told, by UUID.
        """
        with contextlib.suppress(BlockingIOError):
            while os.read(self.wake, 4096):
                pass
        with self._lock:
            report, self._report = self._report, None
            passed: dict[str, Running] = {}
            if report is not None and report.guests is not None:
                passed, self._passed = self._passed, {}
                self._untaken = {}
            states, self._states = self._states, None
        return report, passed, states

    def close(self) -> None:
        os.close(self.wake)
        os.close(self._write)


class _Saver:
    """It writes the state file in a turn, as that may be at any disk."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self.size = 0
        self.logs: Mapping[Key, Progress] = {}
        self.error: OSError | None = None

    def turn(self) -> None:
        self.error = None
        try:
            state.save(self.path, self.logs)
        except OSError as error:
            self.error = error


class Stream:
    """It is given what libvirt reports, and writes what guests write."""

    def __init__(self, host: str, output: Output, logs: Logs, news: News, *,
                 words: Collection[str] = (),
                 progress: Mapping[Key, Progress] | None = None,
                 state_file: str | None = None,
                 quiet: float = QUIET,
                 clock: Callable[[], float] = time.time) -> None:
        """
        :param host: name of this host
        :param words: name or UUID, or the beginning of either, of the guests
            that are wanted; empty: all
        :param progress: how far an earlier stream has come; None: there was
            none
        :param state_file: path of where to keep how far this one has come
        :param quiet: seconds until an unfinished line is given
        """
        self._host = host
        self._output = output
        self._news = news
        self._words = tuple(words)
        #: How far it has come with logs whose guests were not seen yet.
        self._progress = dict(progress or {})
        self._known_before = progress is not None
        #: By UUID, which run of those the stream before knew.
        self._runs = {uuid: one.run for (uuid, _), one
                      in self._progress.items() if not one.left}
        self._saver = None if state_file is None else _Saver(state_file)
        self._quiet = quiet
        self._clock = clock
        self._said = Said(lambda text: LOG.warning('%s', text))
        self._follower = Follower(
            logs.read_from, gather=_GATHER, compare=_COMPARE,
            pace=min(_PACE, quiet), wake=news.wake, looks=False,
            chunk=CHUNK)
        self._followed = Followed(logs, self._follower, self._said, clock, {})
        self._turns = Turns(news.nudge, ENOUGH)
        self._guests: dict[str, Guest] = {}
        #: Those that have something to do in their next turn.
        self._next: dict[Guest, None] = {}
        #: UUIDs of those that libvirt does not know just now.
        self._gone: set[str] = set()
        #: By UUID, those that only the stream before knew, which may have left
        #: or be undefined in a hard reboot.
        self._absent: dict[str, Guest] = {}
        #: Those whose disk does not answer.
        self._stalled: set[Guest] = set()
        self._first_report = True
        #: UUIDs of those that libvirt has not told of yet, since then.
        self._untold: frozenset[str] = frozenset()
        #: Those with a line that is not finished.
        self._unfinished: dict[Guest, None] = {}
        #: What is to be written.
        self._waiting: list[str] = []
        #: How far was written, as a state file has it; and how far that will
        #: be when what waits is written.
        self._written = dict(self._progress)
        self._touched: dict[Key, Progress] = {}
        #: Logs that run, by path, with their guests' names.
        self.running: dict[str, str] = {}
        self._saved = time.monotonic()
        self._changed = False
        #: Logs whose unfinished lines are given in the next turns.
        self._cutting: list[PortStream] = []
        #: When to look for lines that do not go on, by time.monotonic.
        self._look_for_quiet = 0.0
        #: A guest has come, or left, since the state file was written.
        self._other_guests = False
        self._states: dict[str, str] = {}
        #: Why virtlogd does not answer; '': it does.
        self._virtlogd = ''

    def run(self) -> None:
        """Stream until :meth:`News.end` is called.

        :raises InvalidState: the state file cannot be written
        :raises OSError: nobody takes what is written
        """
        try:
            self._save_first()
            while not self._news.ending:
                self._turn()
        finally:
            self._save_last()
            if self._turns.close():
                self._follower.close()
            # Or else a turn that goes on may use it.

    def _turn(self) -> None:
        timeout = _LOOK
        if self._unfinished:
            timeout = min(timeout, self._quiet / 2)
        if any(not self._turns.has(guest) for guest in self._next):
            timeout = 0.0
        for path in self._follower.wait(timeout):
            self._is_ready(path)
        self._take_turns()
        report, passed, states = self._news.take()
        if report is not None:
            self._reported(report, passed)
        if states is not None:
            self._say_virtlogd(states[0])
            self._asked(states[1])
        for guest in (*map(self._guests.__getitem__, self._gone),
                      *self._absent.values()):
            if not guest.is_to_do:
                self._do(guest, guest.look_for_place(
                    [port.path for port in guest.now.values()]))
        self._take_turns()
        self._look_for_gone()
        self._end_quiet_lines()
        self._say_stalled()
        self._commit()
        if (self._other_guests
                or time.monotonic() >= self._saved + SAVE_INTERVAL):
            self._save()

    # Turns at disks

    def _do(self, guest: Guest, job: Job) -> None:
        """Have something done in a guest's next turn."""
        guest.do(job)
        self._next[guest] = None

    def _is_ready(self, path: str) -> None:
        """Have a log read."""
        stream = self._followed.streams.get(path)
        guest = None if stream is None else self._guests.get(stream.uuid)
        if guest is not None:
            self._do(guest, guest.read(path))

    def _take_turns(self) -> None:
        """Do what is to be done; what has to wait is done later."""
        takers = [guest for guest in self._next
                  if not self._turns.has(guest)]
        for guest in takers:
            del self._next[guest]
        self._run(takers)
        while self._turns.interrupted and not self._news.ending:
            self._commit()
            self._run(())

    def _run(self, takers: Collection[Guest | _Saver]) -> None:
        for taker in self._turns.run(takers, lambda: self._news.ending):
            if isinstance(taker, Guest):
                self._collect(taker)
            else:
                self._is_saved()
        cutting, self._cutting = self._cutting, []
        if cutting:
            self._save_cuts(cutting)

    def _collect(self, guest: Guest) -> None:
        """Take what a guest has given in its turn."""
        self._waiting += guest.waiting
        guest.waiting.clear()
        guest.size = 0
        if guest.touched:
            for key, (stream, left) in guest.touched.items():
                self._touched[key] = stream.progress(left=left)
            guest.touched.clear()
            if guest.unfinished:
                self._unfinished[guest] = None
            else:
                self._unfinished.pop(guest, None)
        self._cutting += guest.cutting
        guest.cutting.clear()
        freed, guest.freed = guest.freed, {}
        if freed:
            self._follow_freed(freed)
        if guest in self._stalled and not guest.failed:
            self._say_answers(guest)
        if guest.is_to_do:
            self._next[guest] = None
            return
        # What came while it had its turn may have been done in it.
        self._next.pop(guest, None)
        if guest.leaving:
            self._has_left(guest)

    def _say_stalled(self) -> None:
        """Say whose disk does not answer."""
        for taker, seconds in self._turns.left():
            if seconds < STALLED:
                continue
            if isinstance(taker, Guest):
                if taker not in self._stalled:
                    self._stalled.add(taker)
                    self._say_stalled_guest(taker)
            else:
                self._say_state('its file system does not answer')
        waiting = self._turns.held_back()
        if waiting:
            self._said.say('held back', f'{len(waiting)} more guests wait, '
                           f'as so many logs do not answer.')
        else:
            self._said.unsay('held back')

    def _say_stalled_guest(self, guest: Guest) -> None:
        name = guest.running.name
        text = (f'The log of guest {name} does not answer: what is read of '
                f'{guest.path} has not come for {STALLED:g} s. Its lines '
                f'follow when it answers, as far as virtlogd still has them '
                f'then; those of other guests go on. See to the file system '
                f'that it is on (dmesg, fsfreeze, or the host that it is of).')
        self._said.say(f'disk of {guest.running.uuid}', text)
        self._outside(guest, objects.STALLED, text)

    def _say_answers(self, guest: Guest) -> None:
        self._stalled.discard(guest)
        self._said.unsay(f'disk of {guest.running.uuid}')
        self._outside(guest, objects.ANSWERS, f'The log of guest '
                      f'{guest.running.name} answers again.')

    def _outside(self, guest: Guest, event: str, message: str) -> None:
        """Say something of a guest that may have a turn just now."""
        for port in guest.now.values():
            self._output.sink(port.source, self._waiting).event(
                event, self._clock(), message)

    # What is written

    def _commit(self) -> None:
        """Write what was read; what a state file is to have is known then."""
        self._output.write(self._waiting)
        if self._touched:
            self._changed = True
        for key, progress in self._touched.items():
            before, self._written[key] = self._written.get(key), progress
            if progress.left:
                self._progress[key] = progress
            if before is None or before.left != progress.left:
                # A later stream cannot look whether it was here, or whether
                # all was given.
                self._other_guests = True
        self._touched.clear()

    def _save_first(self) -> None:
        """Write the state file, to see whether that can be done."""
        if self._saver is None:
            return
        self._saver.logs = dict(self._written)
        if not self._turns.finish(self._saver, _SAVE_LAST):
            raise exception.InvalidState(
                self._saver.path, 'its file system does not answer',
                exception.InvalidState.MEND)
        if self._saver.error is not None:
            raise exception.InvalidState(
                self._saver.path, self._saver.error.strerror
                or str(self._saver.error),
                exception.InvalidState.MEND) from self._saver.error

    def _save(self) -> None:
        if self._saver is None or self._turns.has(self._saver):
            return
        self._saved, self._other_guests = time.monotonic(), False
        if not self._changed:
            return
        gone = [key for key, one in self._progress.items() if one.left]
        for key in gone[:-MOST_LEFT]:
            del self._progress[key], self._written[key]
        self._saver.logs = dict(self._written)
        self._changed = False
        self._run([self._saver])

    def _save_cuts(self, streams: Iterable[PortStream]) -> None:
        """Write to the state file that unfinished lines are about to be given.

        After a kill they are cut at the same places.
        """
        self._commit()
        for stream in streams:
            self._written[stream.key] = stream.progress(cut=True)
        self._changed = True
        self._save()

    def _save_last(self) -> None:
        """Write the state file, as the stream ends."""
        if self._saver is None or not (
                self._changed or self._turns.has(self._saver)):
            return
        self._saver.logs = dict(self._written)
        if self._turns.finish(self._saver, _SAVE_LAST):
            self._is_saved()
        else:
            self._say_state('its file system does not answer')

    def _is_saved(self) -> None:
        """Say where the state file could not be written."""
        assert self._saver is not None
        error = self._saver.error
        if error is None:
            self._said.unsay('state')
            return
        self._changed = True
        self._say_state(f'{error.strerror}')

    def _say_state(self, reason: str) -> None:
        assert self._saver is not None
        self._said.say('state', f'{self._saver.path} cannot be written '
                       f'({reason}): after a restart the stream gives lines '
                       f'again that it has given since.')

    # What guests write

    def _end_quiet_lines(self) -> None:
        """Give lines that have begun, and do not go on."""
        if time.monotonic() < self._look_for_quiet:
            return
        self._look_for_quiet = time.monotonic() + self._quiet / 4
        now = self._clock()
        quiet = {
            guest: guest.quiet_lines(now, self._quiet)
            for guest in self._unfinished
            if not guest.is_to_do and not self._turns.has(guest)}
        if not any(quiet.values()):
            return
        self._save_cuts(itertools.chain.from_iterable(quiet.values()))
        for guest, streams in quiet.items():
            for stream in streams:
                guest.end_line(stream)
            self._collect(guest)

    # Which guests there are

    def _reported(self, report: Report, passed: Mapping[str, Running]) -> None:
        """Take what libvirt has answered.

        :param passed: guests that came and left since the last report
        """
        if report.guests is None:
            self._said.say('libvirt', f'{report.error} Until it answers, '
                           f'guests that come or leave are not seen.')
            return
        self._said.unsay('libvirt')
        looks = self._first_report or self._untold or self._absent
        found = {uuid: guest for uuid, guest in report.guests.items()
                 if self._is_wanted(guest)}
        for uuid, running in found.items():
            self._seen(uuid, running)
        for uuid, running in passed.items():
            if (uuid not in self._guests and not self._first_report
                    and self._is_wanted(running)):
                self._seen(uuid, running)
        for uuid, guest in self._guests.items():
            if uuid in found or uuid in report.unknown:
                continue
            guest.returned = None
            if guest.gone is None and not guest.leaving:
                guest.gone = time.monotonic()
                self._gone.add(uuid)
        if looks:
            self._untold = (report.unknown if self._first_report
                            else self._untold & report.unknown)
            self._look_for_known_before()
        if self._first_report:
            # Those that are here have begun before another comes.
            while not self._news.ending and any(
                    not self._turns.has(guest) for guest in self._next):
                self._take_turns()
                self._commit()
            self._first_report = False
        self.running = {
            port.path: guest.running.name
            for guest in self._guests.values()
            if guest.running.run >= 0 and not guest.leaving
            for port in guest.now.values()}

    def _is_wanted(self, guest: Running) -> bool:
        return not self._words or any(
            guest.name.startswith(word)
            or guest.uuid.startswith(word.lower()) for word in self._words)

    def _was_here(self, uuid: str) -> bool:
        """Tell whether a guest was here before the stream began."""
        return (self._first_report or uuid in self._untold
                or uuid in self._absent)

    def _seen(self, uuid: str, running: Running) -> None:
        """Take what was reported of a guest."""
        guest = self._guests.get(uuid)
        if guest is not None and guest.leaving:
            guest.returned = running
            return
        before = guest.running.run if guest is not None else None
        if guest is None:
            guest = self._guests[uuid] = Guest(running, self._followed)
            if self._was_here(uuid):
                before = self._runs.get(uuid)
            self._absent.pop(uuid, None)
            self._set_ports(guest)
        else:
            changed = running.xml != guest.running.xml
            guest.running = running
            guest.gone = None
            if changed or before != running.run:
                self._set_ports(guest)
        if self._was_here(uuid) and not self._known_before:
            return
        self._say_run(guest, before)

    def _say_run(self, guest: Guest, before: int | None) -> None:
        """Say that a guest has started, stopped or come.

        :param before: the run that it had; -1: none; None: it was not here
        """
        now = guest.running
        if now.run == before:
            return
        if before is not None and before >= 0:
            self._say_of(guest, objects.STOPPED, f'Guest {now.name} has '
                         'stopped.')
        if now.run < 0:
            if before is None:
                self._say_of(guest, objects.CAME, f'Guest {now.name} is on '
                             'this host now; it does not run.')
        elif before is None and not now.booted:
            self._say_of(guest, objects.CAME, f'Guest {now.name} is on this '
                         'host now, and goes on from where it was.')
        else:
            self._say_of(guest, objects.STARTED,
                         f'Guest {now.name} has started.')

    def _say_of(self, guest: Guest, event: str, message: str,
                path: str | None = None) -> None:
        """Say something behind what a guest has written until now.

        :param path: of the log that it is said of; None: of each
        """
        self._do(guest, guest.say(event, self._clock(), message, path))

    def _set_ports(self, guest: Guest) -> None:
        """Follow the logs that a guest has now."""
        running = guest.running
        try:
            devices = {device.number: device for device in
                       char_device.parse(running.xml) if device.log_file}
        except exception.InvalidGuestXML as error:
            self._said.say(running.uuid, f'Guest {running.name}: {error}')
            return
        about = metadata.parse(running.xml)
        known, guest.now = guest.now, {}
        for number, device in devices.items():
            assert device.log_file is not None
            source = Source(self._host, running.name, running.uuid, number,
                            about)
            guest.now[number] = PortNow(
                source, device.log_file,
                self._output.sink(source, guest.waiting),
                None if number in known else
                self._progress.pop((running.uuid, number), None))
        self._do(guest, guest.follow(
            running, guest.now.values(),
            from_now=(self._was_here(running.uuid)
                      and not self._known_before)))

    def _follow_freed(self, freed: Mapping[str, Position]) -> None:
        """Have logs followed that were taken for those of other guests.

        One that is defined anew, with another UUID, has the log that it had.
        """
        for guest in self._guests.values():
            if not guest.leaving and any(
                    port.path in freed for port in guest.now.values()):
                self._do(guest, guest.follow(
                    guest.running, guest.now.values(), from_now=False,
                    freed=freed))

    def _look_for_gone(self) -> None:
        """See whether guests that libvirt does not know have left."""
        for uuid in list(self._gone):
            guest = self._guests[uuid]
            if guest.gone is None:
                self._gone.discard(uuid)
            elif guest.is_over(time.monotonic() - _PATIENCE):
                self._gone.discard(uuid)
                guest.leaving = True
                self._do(guest, guest.leave())
        for uuid, guest in list(self._absent.items()):
            if guest.is_over(time.monotonic() - _PATIENCE):
                del self._absent[uuid]
                guest.leaving = True
                self._guests[uuid] = guest
                for number, port in guest.now.items():
                    progress = self._progress.pop((uuid, number))
                    self._do(guest, guest.end(port.source, port.sink,
                                              progress, left=True))

    def _has_left(self, guest: Guest) -> None:
        """Forget a guest of which all was given."""
        self._unfinished.pop(guest, None)
        # Also where it could not be read when its disk answered.
        self._stalled.discard(guest)
        self._said.unsay(f'disk of {guest.running.uuid}')
        del self._guests[guest.running.uuid]
        if guest.returned is not None:
            self._commit()
            self._seen(guest.running.uuid, guest.returned)

    def _look_for_known_before(self) -> None:
        """See which logs of the stream before are not followed now.

        A guest that is not here may just be undefined, as in a hard reboot.
        """
        for key, progress in list(self._progress.items()):
            uuid, number = key
            guest = self._guests.get(uuid)
            # Those that are here have taken theirs.
            if (progress.left or uuid in self._untold
                    or (guest is not None and number in guest.now)):
                continue
            running = Running(uuid, progress.guest, -1, '')
            if not self._is_wanted(running):
                continue
            source = Source(self._host, progress.guest, uuid, number,
                            metadata.Metadata())
            if guest is not None:
                del self._progress[key]
                self._do(guest, guest.end(
                    source, self._output.sink(source, guest.waiting),
                    progress, left=False))
                continue
            guest = self._absent.setdefault(
                uuid, Guest(running, self._followed))
            if guest.gone is None:
                guest.gone = time.monotonic()
            if number not in guest.now:
                guest.now[number] = PortNow(
                    source, progress.path,
                    self._output.sink(source, guest.waiting), progress)

    # What virtlogd does

    def _asked(self, states: dict[str, str]) -> None:
        """Say which logs have died, or are written again."""
        for path, now in states.items():
            if now == 'unknown':
                continue
            before, self._states[path] = self._states.get(path), now
            if now in _DEAD and before not in _DEAD:
                self._say_of_log(path, objects.DIED, 'What guest {name} '
                                 'writes on serial port {number} is logged '
                                 'no more. "virtlogd-console reattach" '
                                 'brings the log back.')
            elif now == 'alive' and before in _DEAD:
                self._say_of_log(path, objects.REVIVED, 'What guest {name} '
                                 'writes on serial port {number} is logged '
                                 'again.')
        # One that is not told of just now is as it was.
        for path in self._states.keys() - states.keys() - self.running.keys():
            del self._states[path]

    def _say_of_log(self, path: str, event: str, message: str) -> None:
        """
        :param message: with the guest's name and the port's number in it
        """
        stream = self._followed.streams.get(path)
        guest = None if stream is None else self._guests.get(stream.uuid)
        if stream is not None and guest is not None:
            self._say_of(guest, event, message.format(
                name=guest.running.name, number=stream.number), path)

    def _say_virtlogd(self, reason: str) -> None:
        """Say that virtlogd does not answer, or does again."""
        before, self._virtlogd = self._virtlogd, reason
        if reason and not before:
            self._waiting.append(self._output.event(
                objects.VIRTLOGD_DOWN, self._clock(), 'What guests write may '
                f'not be logged, as virtlogd does not answer: {reason}'))
        elif before and not reason:
            self._waiting.append(self._output.event(
                objects.VIRTLOGD_UP, self._clock(), 'virtlogd answers again.'))


#: What is not written to a file that can be read any more.
_DEAD = ('dead', 'unlinked')
