# SPDX-License-Identifier: Apache-2.0
"""``virtlogd-console follow`` shows what guests write, as they write it."""

import contextlib
import itertools
import math
import os
import queue
import sys
import threading
import time
from typing import Any

from virtlogd_driver import exception
from virtlogd_driver.cmd import (
    control_sequences,
    guest_name,
    show,
    terminal,
)
from virtlogd_driver.cmd.control_sequences import (
    RESET,
    RESET_SCREEN,
    Neutraliser,
)
from virtlogd_driver.cmd.host import (
    Host,
    SerialPort,
    serial_port,
)
from virtlogd_driver.cmd.interleave import PATIENCE, Interleaved
from virtlogd_driver.cmd.plain import Plain
from virtlogd_driver.console_log.follow import Follower
from virtlogd_driver.node import hypervisor

#: Seconds between two looks at which guests are here.
_LOOK = 2.0
#: Looks without a guest until it has left; one may fall into its restart.
_PATIENCE = 2

#: Seconds until a log is said to have no file any more; those of guests that
#: leave are removed, too.
_GONE = _LOOK * (_PATIENCE + 1)

#: UUID of a guest, and whether it runs; None: it is not on this host.
_News = tuple[str, bool | None]


class _Presence:
    """Tells which guests are here, from a thread: libvirt may hang."""

    def __init__(self, host: Host, known: dict[str, bool]) -> None:
        self.news: queue.SimpleQueue[_News] = queue.SimpleQueue()
        self._host = host
        self._runs: dict[str, bool | None] = dict(known)
        self._missed: dict[str, int] = {}
        self._stop = threading.Event()
        threading.Thread(target=self._loop, daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def _loop(self) -> None:
        connection = None
        while not self._stop.wait(_LOOK):
            # Without libvirt the guests are taken to be where they were.
            with contextlib.suppress(exception.HostError):
                connection = connection or self._host.connect()
                try:
                    self._look(hypervisor.guests_run(connection))
                except exception.HostError:
                    connection = None
                    raise

    def _look(self, found: dict[str, bool]) -> None:
        for uuid, before in self._runs.items():
            runs = found.get(uuid)
            if runs is None:
                self._missed[uuid] = self._missed.get(uuid, 0) + 1
                if self._missed[uuid] < _PATIENCE:
                    continue
            else:
                self._missed.pop(uuid, None)
            if runs != before:
                self._runs[uuid] = runs
                self.news.put((uuid, runs))


class _Files:
    """Tells of logs that had a file, and have none."""

    def __init__(self) -> None:
        #: When that is to be told, by path (time.monotonic).
        self._due: dict[str, float] = {}

    def found(self, path: str) -> None:
        self._due[path] = math.inf

    def missed(self, path: str) -> None:
        if path in self._due:
            self._due[path] = min(self._due[path], time.monotonic() + _GONE)

    def gone(self) -> list[str]:
        """Give those that have none for long enough, once."""
        now = time.monotonic()
        found = [path for path, due in self._due.items() if due <= now]
        for path in found:
            del self._due[path]
        return found


class _Screen:
    """The screen takes all output: labelled lines, or one guest's bytes.

    :param labels: what the lines of each log begin with
    """

    def __init__(self, labels: dict[str, str], *, stamps: bool,
                 raw: bool, plain: bool = False) -> None:
        self._terminal = sys.stdout.isatty()
        self._colour = terminal.has_colour(sys.stdout)
        self._labels = labels
        neutral = self._terminal and not raw and not plain
        self._plain = {path: Plain() for path in labels} if plain else {}
        #: Those with a row that has not ended, and when it is shown all the
        #: same (time.monotonic).
        self._rows: dict[str, float] = {}
        by_line = stamps or len(labels) > 1
        self._neutral = {
            path: Neutraliser(colour=self._colour, overstrike=not by_line)
            for path in labels} if neutral else {}
        self._reset = (RESET_SCREEN if self._terminal and raw else
                       RESET if self._colour else '').encode()
        self._interleaved = Interleaved(
            self._write, stamps=stamps, alone=len(labels) == 1,
            terminal=neutral, reset=self._reset,
            columns=terminal.width() if (
                neutral and os.environ.get('TERM') != 'dumb') else 0,
        ) if by_line else None
        #: The guest's last line is not finished.
        self._within = False
        #: Why logs cannot be read, by path, as it was said.
        self._failed: dict[str, str] = {}

    def put(self, path: str, data: bytes) -> None:
        """Print what a guest wrote."""
        self._failed.pop(path, None)
        if path in self._plain:
            data = _bytes(self._plain[path].text(data))
            self._rows[path] = time.monotonic() + PATIENCE
        elif path in self._neutral:
            data = _bytes(self._neutral[path].text(data))
        self._put(path, data)

    def say(self, text: str) -> None:
        """Print what no guest wrote."""
        self._pause()
        text = control_sequences.visible(text)
        if self._terminal:
            print(terminal.paint(f'-- {text} --', terminal.DIM, self._colour),
                  flush=True)
        else:
            print(f'virtlogd-console: {text}', file=sys.stderr, flush=True)

    def fail(self, path: str, text: str) -> None:
        """Print why a log cannot be read, once until it can."""
        if self._failed.get(path) != text:
            self._failed[path] = text
            self.say(text)

    def flush(self) -> float | None:
        """Give seconds until there is something to be written, if there is."""
        left = (self._interleaved.flush()
                if self._interleaved is not None else None)
        now = time.monotonic()
        for path, due in list(self._rows.items()):
            if due <= now:
                del self._rows[path]
                self._put(path, _bytes(self._plain[path].unfinished()))
        sys.stdout.flush()
        return min((due - now for due in self._rows.values()), default=left)

    def close(self) -> None:
        """Finish: nothing follows."""
        for path, plain in self._plain.items():
            self._put(path, _bytes(plain.text(b'', True)))
        for path, neutral in self._neutral.items():
            self._put(path, _bytes(neutral.text(b'', True)))
        if self._interleaved is not None:
            self._interleaved.close()
        self._pause()

    def _put(self, path: str, data: bytes) -> None:
        if self._interleaved is not None:
            self._interleaved.feed(self._labels[path], data)
        elif data:
            self._write(data)
            self._within = not data.endswith(b'\n')

    def _write(self, data: bytes) -> None:
        """Write what a guest wrote, which is UTF-8 where it was made text."""
        if (self._plain or self._neutral) and not terminal.takes_utf8():
            data = terminal.encode(data.decode(errors='replace'))
        sys.stdout.buffer.write(data)

    def _pause(self) -> None:
        """Go to the beginning of a row, as it was before any guest wrote."""
        if self._terminal:
            if self._interleaved is not None:
                self._interleaved.pause()
            sys.stdout.buffer.write(
                self._reset + (b'\r\n' if self._within else b''))
            self._within = False
        sys.stdout.flush()


def _bytes(text: str) -> bytes:
    """Give a text in UTF-8, as it will be shown: it may have to fit a row."""
    return terminal.had(text).encode()


def run(host: Host, arguments: Any) -> int:
    ports: dict[str, SerialPort] = {}
    guests = host.guests()
    for word in arguments.guest:
        port = serial_port(guest_name.find(guests, word), arguments.port)
        ports[port.log] = port
    screen = _Screen(_labels(ports), stamps=arguments.timestamps,
                     raw=arguments.raw, plain=arguments.plain)
    presence = _Presence(host, {
        port.guest.uuid: port.guest.active for port in ports.values()})
    follower = Follower(host.read_from)
    try:
        _begin(host, follower, list(ports), arguments.lines, screen)
        _follow(follower, ports, presence, screen)
    finally:
        presence.stop()
        follower.close()
        with contextlib.suppress(BrokenPipeError):
            screen.close()
    return 0


def _labels(ports: dict[str, SerialPort]) -> dict[str, str]:
    if len(ports) == 1:
        return dict.fromkeys(ports, '')
    names = {path: terminal.had(control_sequences.visible(port.label))
             for path, port in ports.items()}
    width = max(map(len, names.values()))
    colours = itertools.cycle(terminal.PALETTE)
    return {path: terminal.paint(
        f'{name:{width}} | ', next(colours),
        terminal.has_colour(sys.stdout)) for path, name in names.items()}


def _begin(host: Host, follower: Follower, paths: list[str],
           lines: int, screen: _Screen) -> None:
    """Print the last lines of each log, and from there on what follows."""
    for path in paths:
        try:
            end = show.last_lines(host, path, lines)
            for data in end.pieces:
                screen.put(path, data or b'')
            follower.add(path, end.position)
        except exception.LogNotFound:
            follower.add(path, None)


def _follow(follower: Follower, ports: dict[str, SerialPort],
            presence: _Presence, screen: _Screen) -> None:
    """Print what guests write until none is here any more."""
    here = dict(ports)
    files = _Files()
    while here:
        timeout = screen.flush()
        for path in follower.wait(1.0 if timeout is None else
                                  max(timeout, 0.01)):
            _read(follower, path, here[path], screen, files)
        for path in files.gone():
            if path in here:
                screen.say(f'{here[path].label}: {path} is not there any '
                           f'more: it was removed, or renamed to what is no '
                           f'name of a log. "virtlogd-console list" shows '
                           f'what to do')
        while not presence.news.empty():
            uuid, runs = presence.news.get()
            for path, port in list(here.items()):
                if port.guest.uuid != uuid:
                    continue
                if runs is not None:
                    screen.say(f'{port.label} '
                               + ('runs' if runs else 'is shut off'))
                    continue
                _drain(follower, path, port, screen, files)
                follower.remove(path)
                del here[path]
                screen.say(f'{port.label} is on this host no more: it was '
                           f'migrated, or deleted')


def _read(follower: Follower, path: str, port: SerialPort,
          screen: _Screen, files: _Files) -> bool:
    """Show what a log has; whether there may be more."""
    try:
        since = follower.read(path)
    except exception.LogError as error:
        screen.fail(path, f'{port.label}: {error}')
        return False
    if since is None:
        files.missed(path)
        return False
    files.found(path)
    if since.missed:
        screen.say(f'{port.label}: {since.missed} bytes were rotated away '
                   f'before they were read')
    elif since.missed is None:
        screen.say(f'{port.label}: the log begins anew; output may be '
                   f'missing')
    screen.put(path, since.data)
    return since.behind > 0


def _drain(follower: Follower, path: str, port: SerialPort,
           screen: _Screen, files: _Files) -> None:
    while _read(follower, path, port, screen, files):
        pass
