# SPDX-License-Identifier: Apache-2.0
"""``virtlogd-console stream`` writes what all guests write, line by line."""

import contextlib
import fcntl
import functools
import itertools
import logging
import os
import resource
import select
import signal
import stat
import sys
import threading
import time
from typing import Any

from virtlogd_driver import exception
from virtlogd_driver.cmd import control_sequences, interleave, terminal, when
from virtlogd_driver.cmd.control_sequences import Neutraliser
from virtlogd_driver.cmd.host import Host
from virtlogd_driver.cmd.plain import Plain
from virtlogd_driver.console_log.log import LIVE_GENERATION, Position
from virtlogd_driver.node.events import Watch
from virtlogd_driver.stream import objects, state
from virtlogd_driver.stream.boots import Start
from virtlogd_driver.stream.guest import Logs
from virtlogd_driver.stream.lines import QUIET, Line
from virtlogd_driver.stream.objects import ObjectSink, Source
from virtlogd_driver.stream.service import News, Stream

#: Seconds between two looks at all guests; events tell of each.
_LOOK = 300.0
#: Seconds between two questions whether logs are alive.
_ASK = 60.0
#: Seconds until an unfinished line is shown to people.
_QUIET_TEXT = 0.2
#: Bytes that fit into a pipe which has room (pipe(7)).
_ROOM = 4096
#: Milliseconds between two looks whether to end, while nobody reads.
_PAUSE = 500


class _Ended(Exception):
    """The stream was told to end while nobody took what it writes."""


class _Writer:
    """It writes to standard output, and waits while that is full."""

    def __init__(self, news: News) -> None:
        self._news = news
        self._fd = sys.stdout.fileno()
        self._whole = stat.S_ISREG(os.fstat(self._fd).st_mode)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)
        #: A kill, or a full disk, has cut the last line that is in the file:
        #: with the first one behind it neither could be read.
        self._cut = self._whole and _ends_within_a_line(self._fd)
        if self._whole:
            # One that is truncated meanwhile (copytruncate of logrotate) is
            # written from its start, not behind a hole.
            fcntl.fcntl(self._fd, fcntl.F_SETFL, os.O_APPEND | fcntl.fcntl(
                self._fd, fcntl.F_GETFL))

    def write(self, waiting: list[str]) -> None:
        """Write all that waits.

        :raises _Ended: the stream ends
        :raises OSError: nobody takes it any more
        """
        if not waiting:
            return
        if self._cut:
            waiting.insert(0, '\n')
            self._cut = False
        data = memoryview(terminal.encode(''.join(waiting), 'replace'))
        waiting.clear()
        while data:
            if self._whole:
                data = data[os.write(self._fd, data):]
            elif self._poll.poll(_PAUSE):
                data = data[os.write(self._fd, data[:_ROOM]):]
            elif self._news.ending:
                raise _Ended


def _ends_within_a_line(fd: int) -> bool:
    """Tell whether the last line of a file was not written to its end."""
    try:
        with open(f'/proc/self/fd/{fd}', 'rb') as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b'\n'
    except OSError:   # it is empty, or may not be read
        return False


class _Objects:
    """The output is one JSON object a line."""

    def __init__(self, host: str, writer: _Writer) -> None:
        self._host = host
        self.write = writer.write

    def sink(self, source: Source, waiting: list[str]) -> ObjectSink:
        return ObjectSink(source, waiting)

    def event(self, event: str, time: float, message: str) -> str:
        return objects.host_event({'host': self._host}, event, time, message)


class _Text:
    """The output is lines for people: time, guest and text."""

    def __init__(self, writer: _Writer, *, colour: bool, plain: bool) -> None:
        self.write = writer.write
        self._colour = colour
        self._plain = plain
        self._palette = itertools.cycle(terminal.PALETTE)
        self._colours: dict[str, str] = {}

    def sink(self, source: Source, waiting: list[str]) -> '_TextSink':
        colour = self._colours.setdefault(source.uuid, '')
        if not colour:
            colour = self._colours[source.uuid] = next(self._palette)
        name = control_sequences.visible(
            f'{source.guest}:{source.port}' if source.port else source.guest)
        return _TextSink(terminal.paint(f'{name} |', colour, self._colour),
                         waiting, colour=self._colour, plain=self._plain)

    def event(self, event: str, time: float, message: str) -> str:
        return _remark(time, message, self._colour)


class _TextSink:

    def __init__(self, label: str, waiting: list[str], *, colour: bool,
                 plain: bool) -> None:
        self._label = label
        self._waiting = waiting
        self._colour = colour
        self._plain = plain

    def line(self, line: Line, boot: Start | None, position: str) -> None:
        if self._plain:
            # Of a row that is too long, which it gives as several, the first
            # alone would have a label.
            text = Plain().text(line.data, True).replace('\n', '')
        else:
            text = Neutraliser(colour=self._colour, overstrike=False).text(
                line.data, True).strip('\r').replace('\r', '^M')
        end = (control_sequences.RESET
               if self._colour and '\x1b' in text else '')
        self._waiting.append(f'{interleave.stamp(line.time)} {self._label} '
                             f'{text}{end}\n')

    def event(self, event: str, time: float, message: str,
              **more: Any) -> None:
        self._waiting.append(_remark(time, message, self._colour))


def _remark(time: float, message: str, colour: bool) -> str:
    text = control_sequences.visible(message)
    return (f'{interleave.stamp(time)} '
            + terminal.paint(f'-- {text} --', terminal.DIM, colour) + '\n')


def run(host: Host, arguments: Any) -> int:
    said = logging.StreamHandler(sys.stderr)
    said.setFormatter(logging.Formatter('virtlogd-console: %(message)s'))
    logging.getLogger('virtlogd_driver').addHandler(said)
    progress = None
    if arguments.state is not None:
        # Held to the end of the process.
        state.claim(arguments.state)
        progress = state.load(arguments.state)
    news = News()
    writer = _Writer(news)
    output: _Objects | _Text
    if arguments.format == 'json':
        output = _Objects(host.name, writer)
    else:
        output = _Text(writer, plain=arguments.plain, colour=(
            not arguments.no_colour and terminal.has_colour(sys.stdout)))
    reader = host.kept_open()
    stream = Stream(
        host.name, output,
        Logs(functools.partial(_read_from, reader),
             functools.partial(_start, reader, arguments),
             reader.read_held, reader.forget),
        news, words=arguments.guest, progress=progress,
        state_file=arguments.state,
        quiet=QUIET if arguments.format == 'json' else _QUIET_TEXT)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: news.end())
    _more_files()
    Watch(host.uri, _LOOK, news.reported, everything=True).start()
    threading.Thread(target=_ask, args=(host, stream, news),
                     name='virtlogd', daemon=True).start()
    with contextlib.suppress(_Ended):
        stream.run()
    return 0


def _more_files() -> None:
    """Let as many logs be open as the process may have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _read_from(reader: Any, path: str, position: Position | None, limit: int,
               passed: Any) -> Any:
    return reader.read_from(path, position, limit, passed=passed)


def _start(reader: Any, arguments: Any, path: str, port: int) -> Position:
    """Tell where to begin with the log of a guest that is here already.

    :raises LogError: it cannot be read
    """
    try:
        if arguments.boot is not None:
            return (when.of_boot(path, port, arguments.boot).start
                    or LIVE_GENERATION)
        if arguments.since is not None:
            return (when.since(path, port, arguments.since).start
                    or LIVE_GENERATION)
    except exception.LogError as error:
        logging.getLogger(__name__).warning(
            '%s It is given from now on.', error)
    return reader.read_tail(path, 0).position or LIVE_GENERATION


def _ask(host: Host, stream: Stream, news: News) -> None:
    """Ask virtlogd, which may hang, for as long as the stream runs."""
    while not news.ending:
        time.sleep(_ASK)
        try:
            news.asked(*host.states_of_logs(stream.running))
        except (exception.VirtlogdDriverError, OSError) as error:
            logging.getLogger(__name__).warning(
                'Whether logs are alive is not known: %s', error)
