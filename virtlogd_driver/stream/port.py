# SPDX-License-Identifier: Apache-2.0
"""One serial port's log becomes lines, each with its place and its start."""

import os
import time
from collections.abc import Callable
from typing import Any, Protocol

from virtlogd_driver.console_log.log import (
    LIVE_GENERATION,
    LogSince,
    Part,
    Position,
)
from virtlogd_driver.stream import objects
from virtlogd_driver.stream.boots import Start, Starts
from virtlogd_driver.stream.lines import Line, Splitter
from virtlogd_driver.stream.state import Key, Mark, Progress, with_mark


class Sink(Protocol):
    """A sink takes what a serial port gives."""

    def line(self, line: Line, boot: Start | None, position: str) -> None:
        """Take a line that the guest wrote, after this start."""

    def event(self, event: str, time: float, message: str,
              **more: Any) -> None:
        """Take what is no output."""


class PortStream:
    """It goes through one log, and knows how far it has come."""

    def __init__(self, sink: Sink, key: Key, name: str, path: str, run: int,
                 progress: Progress | None = None,
                 clock: Callable[[], float] = time.time) -> None:
        """
        :param name: of the guest, as in messages
        :param path: path of the live file
        :param run: libvirt's number of the run of the guest
        :param progress: where to go on; None: where the generation begins
            that the guest writes
        """
        self.sink = sink
        self.key = key
        self.uuid, self.number = key
        self.name = name
        self.path = path
        self.run = run
        self._clock = clock
        self._starts = Starts(os.path.dirname(path), self.number)
        self.position = LIVE_GENERATION
        self._splitter = Splitter(clock=clock)
        self._boot: Start | None = None
        self._marks: tuple[Mark, ...] = ()
        #: The end of what was read, as sinks are given places.
        self._end = ''
        #: When something was read last; what an earlier stream has left is
        #: quiet from now on.
        self.read_last = clock()
        #: All was given before the guest left: it may have no place here now.
        self.came_back = False
        if progress is not None:
            self.position = progress.position
            self._splitter = Splitter(progress.rest, progress.begun, clock)
            self._marks = progress.marks
            self._end = _place(progress.position)
            self.came_back = progress.left
            if progress.boot is not None:
                self._boot = self._starts.noted(progress.boot)
            if progress.cut:
                # It may have been given, and the line is cut there.
                self.end_line()

    @property
    def unfinished(self) -> bool:
        """Tell whether a line has begun."""
        return bool(self._splitter.rest)

    def move(self, path: str) -> None:
        """Go on at another path, as the guest's instance directory has it."""
        if os.path.dirname(path) != os.path.dirname(self.path):
            self._starts = Starts(os.path.dirname(path), self.number)
        self.path = path

    def take(self, since: LogSince, position: Position | None) -> None:
        """Give the lines of what was read.

        :param position: where it was read from
        """
        now = self._clock()
        if since.missed != 0 and not self.came_back:
            self.lose(since.missed)
        self.came_back = False
        if since.data and position is not None and (
                position != LIVE_GENERATION):
            self._marks = with_mark(self._marks, Mark(now, position))
        if since.parts:
            self._starts.refresh()
        start = 0
        for part in since.parts:
            size = part[4]
            self._take_part(part, since.data[start:start + size],
                            newest=since.behind == 0)
            start += size
        if since.position is not None:
            self.position = since.position
        self.read_last = now

    def lose(self, count: int | None, failure: str | None = None) -> None:
        """Say that bytes are lost between what was read and what follows.

        :param count: how many; None: that is not known, or none are
        :param failure: why the log cannot be read; None: that is not so
        """
        self.end_line()
        what = 'Output' if count is None else f'{count} bytes'
        why = (
            ', rotated away before this stream came to it. Where that happens '
            'often, see to what takes the stream, or let virtlogd keep more '
            '(max_size and max_backups in virtlogd.conf).'
            if failure is None else f', as the guest has left: {failure}')
        self.sink.event(
            objects.LOST, self._clock(),
            f'{what} of guest {self.name} on serial port {self.number} '
            f'{"may be" if count is None else "are"} missing here{why}',
            bytes=count)

    def end_line(self) -> None:
        """Give what has come of a line, as nothing follows for now."""
        line = self._splitter.quiet()
        if line is not None:
            self.sink.line(line, self._boot, self._end)

    def progress(self, *, left: bool = False,
                 cut: bool = False) -> Progress:
        """Give how far it has come.

        :param left: its guest has left this host
        :param cut: the unfinished line is about to be given
        """
        # Of a guest that has come back nothing was read yet.
        position = (LIVE_GENERATION if self.came_back and not left
                    else self.position)
        return Progress(
            self.name, self.path, self.run, position,
            self._splitter.rest, self._splitter.begun,
            None if self._boot is None else self._boot.time,
            () if left else self._marks, left, cut)

    def _take_part(self, part: Part, data: bytes, *, newest: bool) -> None:
        begin = part[3] - part[4]
        self._boot = self._starts.before(part, newest=newest) or self._boot
        done = 0
        for offset, start in self._starts.within(part):
            if offset > begin:
                self._split(part, data[done:offset - begin], begin + done)
                self._end = objects.place(part, offset)
                self.end_line()
                done = offset - begin
            self._boot = start
        self._split(part, data[done:], begin + done)
        self._end = objects.place(part, part[3])

    def _split(self, part: Part, data: bytes, begin: int) -> None:
        for line in self._splitter.feed(data):
            self.sink.line(line, self._boot,
                           objects.place(part, begin + line.end))


def _place(position: Position) -> str:
    return objects.place((position.device, position.inode,
                          position.mark >> 32, 0, 0), position.offset)
