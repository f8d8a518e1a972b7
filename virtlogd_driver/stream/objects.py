# SPDX-License-Identifier: Apache-2.0
"""A stream gives one JSON object a line.

doc/source/operator/stream.schema.json describes them, and a test holds
them against it.
"""

import base64
import datetime
import json
import re
from dataclasses import dataclass
from json import encoder
from typing import Any

from virtlogd_driver.console_log.log import Part
from virtlogd_driver.guest.metadata import Metadata
from virtlogd_driver.stream.boots import Start
from virtlogd_driver.stream.lines import Line

# What is said that no guest wrote.
STARTED, STOPPED, CAME, LEFT = 'started', 'stopped', 'came', 'left'
LOST, DIED, REVIVED = 'lost', 'died', 'revived'
STALLED, ANSWERS = 'stalled', 'answers'
VIRTLOGD_DOWN, VIRTLOGD_UP = 'virtlogd_down', 'virtlogd_up'

#: What a terminal obeys that JSON may have as it is: C1, of which one begins
#: control sequences, ends of lines, and what reorders the text around it.
_OBEYED = re.compile(
    '[\x80-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]')


@dataclass(frozen=True, slots=True)
class Source:
    """The source of a line is a serial port of a guest on a host."""

    host: str
    #: Name of the guest, as libvirt knows it.
    guest: str
    uuid: str
    port: int
    metadata: Metadata

    def fields(self) -> dict[str, Any]:
        """Give what each of its objects has; nothing that is not known."""
        known = {name: value for name in (
            'server', 'project', 'project_name', 'user', 'user_name',
            'flavor', 'image')
            if (value := getattr(self.metadata, name)) is not None}
        return {'host': self.host, 'guest': self.guest, 'uuid': self.uuid,
                'port': self.port, **known}


class Formatter:
    """It makes the objects of one source."""

    def __init__(self, source: Source) -> None:
        self._fields = source.fields()
        self._known = _dumps(self._fields)[1:-1]
        self._boot: Start | None = None
        self._middle = self._known
        #: The last second, as a text: most lines share it with the one
        #: before.
        self._second = -1
        self._stamp = ''

    def line(self, line: Line, boot: Start | None, position: str) -> str:
        """Give a line that the guest wrote.

        :param boot: the start that it was written after
        :param position: see :func:`place`
        """
        if boot is not self._boot:
            self._boot = boot
            self._middle = self._known if boot is None else (
                f'{self._known}, "boot": {{"number": {boot.number}, '
                f'"start": "{stamp(boot.time)}"}}')
        raw = ''
        try:
            data = line.data.decode()
        except UnicodeDecodeError:
            data = line.data.decode(errors='replace')
            raw = (', "raw": "'
                   + base64.b64encode(line.data).decode('ascii') + '"')
        text = _harmless(encoder.encode_basestring(data))
        second, fraction = divmod(line.time, 1)
        if second != self._second:
            self._second = int(second)
            self._stamp = stamp(second)[:19]
        partial = ', "partial": true' if line.partial else ''
        return (f'{{"time": "{self._stamp}.{int(fraction * 1000):03d}Z", '
                f'{self._middle}, "text": {text}{raw}{partial}, '
                f'"position": "{position}"}}\n')

    def event(self, event: str, time: float, message: str,
              **more: Any) -> str:
        """Give what is no output.

        :param time: when it was seen, in seconds since the epoch
        :param message: what it means, for people
        """
        return host_event(self._fields, event, time, message, **more)


class ObjectSink:
    """It collects the objects of one source."""

    def __init__(self, source: Source, waiting: list[str]) -> None:
        """
        :param waiting: takes them, until they are written
        """
        self._formatter = Formatter(source)
        self._waiting = waiting

    def line(self, line: Line, boot: Start | None, position: str) -> None:
        """Take a line: see :meth:`Formatter.line`."""
        self._waiting.append(self._formatter.line(line, boot, position))

    def event(self, event: str, time: float, message: str,
              **more: Any) -> None:
        """Take what is no output: see :meth:`Formatter.event`."""
        self._waiting.append(
            self._formatter.event(event, time, message, **more))


def host_event(fields: dict[str, Any], event: str, time: float,
               message: str, **more: Any) -> str:
    """Give an event that has these fields."""
    return _dumps({'time': stamp(time), **fields, 'event': event,
                   'message': message, **more}) + '\n'


def _dumps(values: dict[str, Any]) -> str:
    return _harmless(json.dumps(values, ensure_ascii=False))


def _harmless(text: str) -> str:
    """Give JSON that means the same, whatever it is shown on."""
    if text.isascii():
        return text
    return _OBEYED.sub(lambda match: f'\\u{ord(match[0]):04x}', text)


def stamp(seconds: float) -> str:
    """Give a time, to the millisecond, in UTC (RFC 3339)."""
    return datetime.datetime.fromtimestamp(
        int(seconds * 1000) / 1000, datetime.UTC).isoformat(
            timespec='milliseconds').removesuffix('+00:00') + 'Z'


def place(part: Part, offset: int) -> str:
    """Give a place in a log, which no other one has: file and offset.

    It stays as it is while the file is rotated.
    """
    device, inode, version, _, _ = part
    return f'{device:x}-{inode:x}-{version:x}-{offset:x}'
