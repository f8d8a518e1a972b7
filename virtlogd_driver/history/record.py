# SPDX-License-Identifier: Apache-2.0
"""A record tells another host of the histories that this one sends.

One JSON file, which is staged beside them. Its bytes come from another host,
so :func:`parse` is the one place that looks at them, and gives checked
values or an error.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from virtlogd_driver.history import boot

#: Its name among what is staged.
FILE = 'record.json'
#: Bytes that it has at most.
MAX_SIZE = 256 * 1024
#: Serial ports of a guest at most (guest/serial_port.py has the real limits).
MAX_PORTS = 64
MAX_BOOTS = 100
VERSION = 1

_DEPARTURE = re.compile(r'[0-9a-f]{32}')
_DIGEST = re.compile(r'[0-9a-f]{32}')


class InvalidRecord(Exception):
    """It is no record, or one of a later version of this driver."""


@dataclass(frozen=True, slots=True)
class History:
    """This comes of one serial port."""

    port: int
    #: Of the log that goes on from it, as its source knows it.
    generation: int
    #: Bytes.
    size: int
    #: BLAKE2b of 16 bytes, in hexadecimal.
    digest: str
    #: Whether it has all that was ever written, or what this host does not
    #: have; False: it was cut to a bound, or virtlogd had removed some.
    whole: bool

    @property
    def file(self) -> str:
        """Its name among what is staged, which no reader takes for a log."""
        return f'history.{self.port}'


@dataclass(frozen=True, slots=True)
class Boot:
    """A boot is one start of the guest."""

    #: Seconds since the epoch, by the clock of the host it was on.
    time: float
    #: By serial port, the bytes of the log that follow it; None: it is at
    #: the beginning of what there is, or before.
    following: dict[int, int | None]
    #: As of boot.Boot; 0: not known, as an earlier version has sent it.
    number: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """A record is sent when a guest leaves a host."""

    #: 32 hexadecimal digits that no other departure has.
    departure: str
    #: False: all that the guest wrote. True: what it wrote at the host that
    #: it goes back from, and the other one has the rest.
    stint: bool
    histories: tuple[History, ...]
    boots: tuple[Boot, ...]
    #: Departures whose histories are in these.
    received: tuple[str, ...]

    def format(self) -> bytes:
        """The bytes that :func:`parse` takes.

        The first line is the digest of the rest, so that half a record is
        not taken for a bad one.
        """
        text = json.dumps({
            'version': VERSION, 'departure': self.departure,
            'stint': self.stint, 'received': list(self.received),
            'histories': [{
                'port': h.port, 'generation': h.generation, 'size': h.size,
                'digest': h.digest, 'whole': h.whole}
                for h in self.histories],
            'boots': [{'time': b.time, 'following': {
                str(port): count for port, count in b.following.items()},
                'number': b.number} for b in self.boots]}).encode()
        return digest([text]).encode() + b'\n' + text


def is_whole(data: bytes) -> bool:
    """Whether a record has come to its end, good or bad."""
    first, _, text = data.partition(b'\n')
    return first == digest([text]).encode()


def digest(chunks: Iterable[bytes]) -> str:
    """What a file is recognised by.

    A size is not enough: scp writes at many places of a file at once, and
    leaves holes in one of full length where a disk was full for a moment.
    """
    found = hashlib.blake2b(digest_size=16)
    for chunk in chunks:
        found.update(chunk)
    return found.hexdigest()


def parse(data: bytes, limit: int) -> Record:
    """Check what a peer has sent, which is whole.

    :param limit: bytes that a history may have at most
    :raises InvalidRecord: what is wrong
    """
    values = load(data.partition(b'\n')[2])
    try:
        if _number(values['version'], 1 << 31) != VERSION:
            raise InvalidRecord(f'its version is not {VERSION}')
        histories = [_history(value, limit)
                     for value in _list(values['histories'], MAX_PORTS)]
        if len({h.port for h in histories}) < len(histories):
            raise InvalidRecord('a serial port is there twice')
        return Record(
            _text(values['departure'], _DEPARTURE), _bool(values['stint']),
            tuple(histories),
            tuple(map(parse_boot, _list(values['boots'], MAX_BOOTS))),
            tuple(_text(value, _DEPARTURE)
                  for value in _list(values['received'], 100)))
    except (KeyError, TypeError) as e:
        raise InvalidRecord(f'{type(e).__name__}: {e}') from e


def load(data: bytes) -> Any:
    """:raises InvalidRecord: it is no JSON of reasonable size and depth"""
    if len(data) > MAX_SIZE:
        raise InvalidRecord(f'it has more than {MAX_SIZE} bytes')
    try:
        return json.loads(data, parse_int=_parse_int,
                          parse_float=_parse_float,
                          parse_constant=_no_constant)
    except (ValueError, RecursionError) as e:
        raise InvalidRecord(f'it is no JSON that can be read: {e}') from e


def parse_boot(value: Any) -> Boot:
    """:raises InvalidRecord: what is wrong"""
    try:
        time, following = value['time'], value['following']
        if (isinstance(time, bool) or not isinstance(time, (int, float))
                or not 0 <= time < boot.LATEST
                or not isinstance(following, dict)
                or len(following) > MAX_PORTS):
            raise InvalidRecord('a start of the guest is not as it should')
        return Boot(float(time), {
            _port(_parse_int(port)):
                None if count is None else _number(count, 1 << 62)
            for port, count in following.items()},
            _number(value.get('number', 0), 1 << 62))
    except (KeyError, TypeError, ValueError) as e:
        raise InvalidRecord(f'a start of the guest: {e}') from e


def _history(value: Any, limit: int) -> History:
    found = History(
        _port(value['port']), _number(value['generation'], 10 ** 8),
        _number(value['size'], 1 << 62), _text(value['digest'], _DIGEST),
        _bool(value['whole']))
    if found.size > limit:
        raise InvalidRecord(
            f'the history of serial port {found.port} has {found.size} bytes, '
            f'and this host takes [virtlogd] max_history_bytes = {limit}')
    return found


def _parse_int(text: str) -> int:
    if len(text) > 19 or not re.fullmatch('-?[0-9]+', text):
        raise ValueError(f'{text[:20]} is no reasonable number')
    return int(text)


def _parse_float(text: str) -> float:
    found = float(text)
    if not math.isfinite(found):
        raise ValueError(f'{text[:20]} is no reasonable number')
    return found


def _no_constant(text: str) -> float:
    raise ValueError(f'{text} is no number')


def _list(value: Any, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise InvalidRecord(f'a list of at most {most} is expected')
    return value


def _text(value: Any, pattern: re.Pattern[str]) -> str:
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise InvalidRecord(f'{pattern.pattern} is expected')
    return value


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidRecord('true or false is expected')
    return value


def _number(value: Any, most: int) -> int:
    if (not isinstance(value, int) or isinstance(value, bool)
            or not 0 <= value <= most):
        raise InvalidRecord(f'a number from 0 to {most} is expected')
    return value


def _port(value: Any) -> int:
    return _number(value, MAX_PORTS - 1)
