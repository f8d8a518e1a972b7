# SPDX-License-Identifier: Apache-2.0
"""A guest's logs are followed, whatever becomes of the guest.

What touches its disk is a job, which its turn (turns.py) does; jobs are done
in their order. While it has a turn, what the jobs use is that turn's alone.
"""

import os
from collections import deque
from collections.abc import (
    Callable,
    Collection,
    Generator,
    Iterable,
    Mapping,
)
from dataclasses import dataclass

from virtlogd_driver import exception
from virtlogd_driver.console_log.directory import directory_error
from virtlogd_driver.console_log.follow import Follower, Read
from virtlogd_driver.console_log.log import (
    LIVE_GENERATION,
    LogSince,
    Position,
)
from virtlogd_driver.history import deleted, outbox
from virtlogd_driver.node.events import Running
from virtlogd_driver.stream import objects
from virtlogd_driver.stream.objects import Source
from virtlogd_driver.stream.port import PortStream, Sink
from virtlogd_driver.stream.state import Key, Progress

#: What is done in turns: it ends one where what was collected until then is
#: to be written first.
Job = Generator[None, None, None]


@dataclass(frozen=True, slots=True)
class Logs:
    """How logs are read (console_log/reader.py), in any thread."""

    read_from: Read
    #: Gives where to begin with the log of a guest that is here already, by
    #: path and number of the serial port.
    start: Callable[[str, int], Position]
    #: Gives what follows a position in the files of a log that are open,
    #: whatever their names; None: it is in none of them.
    read_held: Callable[[str, Position, int], LogSince | None]
    #: Closes the files of logs in a directory.
    forget: Callable[[str], None]


#: Bytes of one read. A guest may write nothing but line ends, and each byte is
#: an object then: some hundred bytes.
CHUNK = 1 << 16
#: Bytes that are read, or characters of objects, about, until these are
#: written.
ENOUGH = 1 << 20

#: Looks for what is left of the log of a guest that has left, if a disk does
#: not give it: an error of a moment costs no line.
LOOKS = 3

#: What a guest has begun to write does not go on after these.
_ENDS = (objects.STOPPED, objects.DIED)


class Said:
    """What is said to people is said once, until it is otherwise."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._said: dict[str, str] = {}

    def say(self, about: str, text: str) -> None:
        """Say something about something."""
        if self._said.get(about) != text:
            self._said[about] = text
            self._write(text)

    def unsay(self, about: str) -> bool:
        """Take it for otherwise now; whether something was said."""
        return self._said.pop(about, None) is not None


@dataclass(frozen=True, slots=True)
class Followed:
    """What all guests of a host have in common."""

    logs: Logs
    follower: Follower
    said: Said
    clock: Callable[[], float]
    #: By path, whose log it is. A path is added and removed in a turn of that
    #: guest.
    streams: dict[str, PortStream]


@dataclass(frozen=True, slots=True)
class PortNow:
    """A serial port as it was reported last."""

    source: Source
    #: Path of the live file.
    path: str
    sink: Sink
    #: How far an earlier stream has come.
    progress: Progress | None


class Guest:
    """A guest has serial ports whose logs are followed."""

    def __init__(self, running: Running, followed: Followed) -> None:
        # What was reported of it.
        self.running = running
        #: When libvirt stopped to know it, by time.monotonic.
        self.gone: float | None = None
        #: It has left, or is about to; and what it is if it is here again.
        self.leaving = False
        self.returned: Running | None = None
        #: Serial ports by number.
        self.now: dict[int, PortNow] = {}

        # What a turn has, or else who gives the turns.
        self._followed = followed
        self.ports: dict[int, PortStream] = {}
        #: What was collected: objects, their characters (or the bytes that
        #: were read, where they are more), and which logs have got on, with
        #: whether their guest has left.
        self.waiting: list[str] = []
        self.size = 0
        self.touched: dict[Key, tuple[PortStream, bool]] = {}
        #: Logs whose unfinished lines are given in the next turn.
        self.cutting: list[PortStream] = []
        #: Where it was in logs that it does not follow any more, by path.
        self.freed: dict[str, Position] = {}
        #: What was read last could not be.
        self.failed = False
        #: One of its logs was in its place when that was looked at.
        self.in_place = True

        self._jobs: deque[Job] = deque()

    @property
    def path(self) -> str:
        """A path that tells which file system it is at."""
        return next((port.path for port in self.now.values()), '/')

    @property
    def unfinished(self) -> bool:
        """Tell whether a line has begun."""
        return any(stream.unfinished for stream in self.ports.values())

    def is_over(self, since: float) -> bool:
        """Tell whether it has left, if libvirt does not know it.

        :param since: it has, if it is not known since before, by
            time.monotonic
        """
        return self.gone is not None and (
            not self.in_place or self.gone <= since)

    def do(self, job: Job) -> None:
        """Have something done in its turn."""
        self._jobs.append(job)

    @property
    def is_to_do(self) -> bool:
        """Tell whether something is left to be done."""
        return bool(self._jobs)

    def turn(self) -> None:
        """Do what is to be done, up to where something is to be written."""
        while self._jobs:
            for _ in self._jobs[0]:
                return
            self._jobs.popleft()

    # Jobs

    def read(self, path: str) -> Job:
        """Give what a log has, if it has more."""
        stream = self._followed.streams.get(path)
        if (stream is not None and stream.uuid == self.running.uuid
                and self._followed.follower.is_ready(path)):
            while (yield from self._read(stream)) and self.size < ENOUGH:
                pass
            yield from self._write_first()

    def say(self, event: str, time: float, message: str,
            path: str | None = None) -> Job:
        """Say something of each of its serial ports that has a log.

        :param path: of the one whose log has this path
        """
        for stream in self.ports.values():
            if path not in (None, stream.path):
                continue
            if event in _ENDS:
                yield from self._drain(stream)
                if stream.unfinished:
                    self.cutting.append(stream)
                    yield
                stream.end_line()
            stream.sink.event(event, time, message)
            self._touch(stream)

    def look_for_place(self, paths: Collection[str]) -> Job:
        """See whether a log is still where it was.

        :param paths: of its logs
        """
        self.in_place = any(map(os.path.lexists, paths))
        yield from ()

    def follow(self, running: Running, now: Iterable[PortNow],
               from_now: bool,
               freed: Mapping[str, Position] | None = None) -> Job:
        """Follow the logs that it has now.

        :param from_now: what there is of new ones is not given, where no
            earlier stream has begun with them
        :param freed: of logs that another guest had, where that was, by path
        """
        found = {port.source.port: port for port in now}
        for number in list(self.ports):
            if number not in found:
                stream = self.ports.pop(number)
                yield from self._drain(stream)
                stream.end_line()
                self._forget(stream)
                self._touch(stream, left=True)
        for number, port in found.items():
            known = self.ports.get(number)
            if known is None:
                self.ports[number] = self._begin(running, port, from_now)
                continue
            known.sink, known.run = port.sink, running.run
            known.name = running.name
            if known.path == port.path and not self._is_followed(known):
                # What is before was given as the other's.
                known.position = (freed or {}).get(
                    known.path, known.position)
                self._add(known)
            elif known.path != port.path:
                # What it wrote last may not be where it writes now.
                yield from self._drain(known)
                self._forget(known)
                known.move(port.path)
                self._add(known)
            self._touch(known)

    def leave(self) -> Job:
        """Give what is left, and say that it has left."""
        for stream in self.ports.values():
            missing = yield from self._drain(stream)
            found = yield from self._rest(
                stream, rotated=missing or stream.position == LIVE_GENERATION)
            if not found and missing:
                stream.lose(None)
            self._end(stream)
            self._forget(stream)
            self._followed.logs.forget(os.path.dirname(stream.path))
        self.ports.clear()

    def end(self, source: Source, sink: Sink, progress: Progress, *,
            left: bool) -> Job:
        """Give the rest of a log that was over while nobody looked.

        :param progress: how far an earlier stream has come with it
        :param left: its guest has left; or else it has no such log any more
        """
        stream = PortStream(
            sink, (source.uuid, source.port), progress.guest, progress.path,
            progress.run, progress, self._followed.clock)
        if not (yield from self._rest(stream, rotated=True)):
            stream.lose(None)
        if left:
            self._end(stream)
        else:
            stream.end_line()
            self._touch(stream, left=True)

    def quiet_lines(self, now: float, quiet: float) -> list[PortStream]:
        """Give the logs with a line that has begun, and does not go on.

        :param now: seconds since the epoch
        :param quiet: seconds
        """
        # A clock that is set back is quiet for long, too.
        return [stream for stream in self.ports.values()
                if stream.unfinished
                and not 0 <= now - stream.read_last < quiet
                and not (self._is_followed(stream)
                         and self._followed.follower.is_unread(stream.path))]

    def end_line(self, stream: PortStream) -> None:
        """Give an unfinished line of one of its logs."""
        stream.end_line()
        self._touch(stream)

    # What jobs are made of

    def _touch(self, stream: PortStream, *, left: bool = False) -> None:
        self.touched[stream.key] = stream, left

    def _begin(self, running: Running, port: PortNow,
               from_now: bool) -> PortStream:
        """Begin with the log of a serial port."""
        number, path = port.source.port, port.path
        stream = PortStream(
            port.sink, (running.uuid, number), running.name, path,
            running.run, port.progress, self._followed.clock)
        if port.progress is None and from_now:
            try:
                stream.position = self._followed.logs.start(path, number)
            except exception.LogNotFound:
                pass   # it is not written yet
            except exception.LogError as error:
                self._followed.said.say(path, str(error))
        self._add(stream)
        self._touch(stream)
        return stream

    def _add(self, stream: PortStream) -> None:
        """Follow a log, which is another serial port's only by mistake."""
        other = self._followed.streams.setdefault(stream.path, stream)
        if other is stream:
            self._followed.follower.add(stream.path, stream.position)
        else:
            if stream.position == LIVE_GENERATION:
                # What is there already is given as the other's.
                stream.position = other.position
            self._followed.said.say(
                f'{stream.key}', f'Serial port {stream.number} of guest '
                f'{stream.name} has the log of guest {other.name}, '
                f'{stream.path}: what both write is given as of the '
                f'latter, while that is here. Give each a log of its own.')

    def _forget(self, stream: PortStream) -> None:
        """Follow a log no more."""
        if self._is_followed(stream):
            self._followed.follower.remove(stream.path)
            del self._followed.streams[stream.path]
            self.freed[stream.path] = stream.position

    def _is_followed(self, stream: PortStream) -> bool:
        return self._followed.streams.get(stream.path) is stream

    def _read(self, stream: PortStream) -> Generator[None, None, bool]:
        """Give what a log has; whether there may be more."""
        if not os.path.lexists(stream.path):
            # The guest has left; or it is just rotated.
            yield from self._rest_of_held(stream)
        position = stream.position
        try:
            since = self._followed.follower.read(stream.path)
            if since is not None and stream.came_back:
                if since.missed == 0:
                    stream.came_back = False
                else:
                    # Another log, which may begin as the old one did, and is
                    # no copy of that.
                    stream.position = position = LIVE_GENERATION
                    self._followed.follower.begin_at(stream.path, position)
                    since = self._followed.follower.read(stream.path)
        except exception.LogError as error:
            self.failed = True
            self._followed.said.say(stream.path, f'{stream.name}: {error}')
            return False
        self.failed = False
        if since is None:
            return False
        self._followed.said.unsay(stream.path)
        if since.data or since.missed != 0 or since.position != position:
            self._take(stream, since, position)
        return since.behind > 0

    def _take(self, stream: PortStream, since: LogSince,
              position: Position | None) -> None:
        before = len(self.waiting)
        stream.take(since, position)
        # A read may become few characters, as --plain leaves them out.
        self.size += max(len(since.data),
                         sum(map(len, self.waiting[before:])))
        self._touch(stream)

    def _write_first(self) -> Job:
        """Have what was collected written first, where it is much."""
        if self.size >= ENOUGH:
            yield

    def _drain(self, stream: PortStream) -> Generator[None, None, bool]:
        """Give what a log still has; whether there was more than it gave."""
        if not self._is_followed(stream):
            return False
        while (yield from self._read(stream)):
            yield from self._write_first()
        # What was read in a file that is open may be told of only now.
        given = not os.path.lexists(stream.path) and (
            yield from self._rest_of_held(stream))
        return (self._followed.follower.is_rotated(stream.path)
                or (not given
                    and self._followed.follower.is_unread(stream.path)))

    def _end(self, stream: PortStream) -> None:
        """Say that it has left."""
        stream.end_line()
        stream.sink.event(
            objects.LEFT, self._followed.clock(), f'Guest {stream.name} is on '
            f'this host no more: it was moved, or deleted.')
        self._touch(stream, left=True)

    def _rest_of_held(
            self, stream: PortStream) -> Generator[None, None, bool]:
        """Give what is left in the files that are open; whether any was."""
        behind = 1
        while behind:
            position = stream.position
            try:
                since = self._followed.logs.read_held(
                    stream.path, position, CHUNK)
            except exception.LogError:
                return False   # as where none is open
            if since is None:
                return False
            behind = since.behind
            if since.data:
                self._take(stream, since, position)
            self._followed.follower.go_on(stream.path, since)
            if behind:
                yield from self._write_first()
        return True

    def _rest(self, stream: PortStream, *,
              rotated: bool) -> Generator[None, None, bool]:
        """Give what is left of a log that is not followed any more.

        It may lie where nova or this driver has put it until another host
        has it. Where a disk does not give it, it is asked again; at last it is
        said that output may be missing.

        :param rotated: where the place is not found that was read last, some
            was rotated away, which is said, and the rest is given
        :returns: whether it was found, or all about it was said
        """
        for left in reversed(range(LOOKS)):
            try:
                return (yield from self._look_for_rest(
                    stream, rotated=rotated, last=left == 0))
            except exception.LogError as error:
                failure = error
            if left:
                yield
        self._followed.said.say(stream.path, f'{stream.name}: {failure}')
        stream.lose(None, str(failure))
        return True

    def _look_for_rest(self, stream: PortStream, *, rotated: bool,
                       last: bool) -> Generator[None, None, bool]:
        """Look once for what is left of a log, and give it.

        :param last: it is looked for no more: what there is is given, though
            the place that was read last may be where a disk does not tell
        :returns: whether it was found
        :raises LogError: it may be where a disk does not give it
        """
        places, failure = _places_after(stream.path, stream.uuid)
        before = stream.position
        looks = [(path, before, gap)
                 for gap in (False, True)[:1 + rotated] for path in places]
        if stream.came_back:
            # Nothing was read of what it has written since. What it wrote
            # before may wait in one of them, too.
            looks = [(path, place, place == LIVE_GENERATION)
                     for place in (before, LIVE_GENERATION)
                     for path in places if os.path.lexists(path)]
        for path, position, gap in looks:
            if gap and failure is not None and not last:
                break
            try:
                if (yield from self._rest_at(
                        stream, path, position, gap=gap)):
                    return True
            except exception.LogError as error:
                if stream.position != before:
                    raise   # it goes on from there
                if not isinstance(error, exception.LogNotFound):
                    failure = failure or error
        if failure is not None:
            raise failure
        return False

    def _rest_at(self, stream: PortStream, path: str, position: Position,
                 *, gap: bool) -> Generator[None, None, bool]:
        """Give what is left of a log in one place; whether it is there.

        :param gap: also where some is missing before it
        """
        at: Position | None = position
        while True:
            since = self._followed.logs.read_from(
                path, at, CHUNK, frozenset())
            if since.missed != 0 and not gap:
                return False
            self._take(stream, since, at)
            at = since.position
            if not since.behind:
                return True
            yield from self._write_first()


def _places_after(
        path: str, uuid: str) -> tuple[list[str], exception.LogError | None]:
    """Give where a log may lie when its guest has left.

    Also what a disk says that does not tell all of it.
    """
    directory, name = os.path.split(path)
    instances_path = os.path.dirname(directory)
    places = [directory, f'{directory}_resize']
    failure: exception.LogError | None = None
    for more in (outbox.paths, deleted.places):
        try:
            places += more(instances_path, uuid)
        except PermissionError:
            pass   # nor may what is there be read
        except OSError as error:
            failure = directory_error(error, instances_path)
    return [os.path.join(place, name) for place in places], failure
