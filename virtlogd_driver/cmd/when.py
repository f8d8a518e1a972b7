# SPDX-License-Identifier: Apache-2.0
"""A start of a guest, or a time, tells where in its log to begin."""

import argparse
import datetime
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from virtlogd_driver import exception
from virtlogd_driver.console_log.log import Position
from virtlogd_driver.history import boot
from virtlogd_driver.stream.state import Mark

_UNITS = {'s': 1, 'm': 60, 'h': 3600, 'd': 86400}


@dataclass(frozen=True, slots=True)
class Span:
    """A span is a part of a log."""

    #: None: the log's very beginning.
    start: Position | None = None
    #: None: its end, wherever that is.
    stop: Position | None = None
    #: When it begins, in seconds since the epoch; None: that is not known.
    time: float | None = None


def parse_time(text: str, now: float | None = None) -> float:
    """Read a time: RFC 3339, of today, or how long ago.

    Without an offset it is this host's.

    :returns: seconds since the epoch; what is before that is then
    :raises argparse.ArgumentTypeError: it is none
    """
    now = time.time() if now is None else now
    ago = re.fullmatch(r'-?(\d{1,9})([smhd])(?: ago)?', text)
    if ago is not None:
        return max(0.0, now - int(ago[1]) * _UNITS[ago[2]])
    try:
        if re.fullmatch(r'\d\d:\d\d(:\d\d)?', text):
            today = datetime.datetime.fromtimestamp(now).date()
            text = f'{today.isoformat()} {text}'
        # A date that can be told in each zone.
        return min(max(0.0, datetime.datetime.fromisoformat(
            text).timestamp()), float(boot.LATEST))
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(
            f'{text!r} is no time: use 2026-01-31T12:00:00Z, "2026-01-31 '
            f'12:00", 12:00 or 90s, 5m, 2h, 1d, for how long ago') from error


def of_boot(path: str, port: int, number: int) -> Span:
    """Give what a guest wrote after one of its starts, until the next.

    :param path: of the log
    :param number: as of boot.Boot; 0 is the last, -1 the one before
    :raises LogNotFound: it is not noted
    """
    boots = _boots(path, port)
    index = (number + len(boots) - 1 if number <= 0 else next(
        (index for index, one in enumerate(boots) if one.number == number),
        -1))
    if index < 0:
        raise exception.LogNotFound(
            f'Start {number} of this guest is not noted beside {path}: '
            + (f'there are {boots[0].number} to {boots[-1].number}; 0 is the '
               f'last, -1 the one before it.' if boots else
               'nova-compute does that, with this driver. Leave out --boot.'))
    after = boots[index + 1:index + 2]
    return Span(boots[index].positions[port],
                after[0].positions[port] if after else None,
                boots[index].time)


def since(path: str, port: int, moment: float,
          marks: Sequence[Mark] = ()) -> Span:
    """Give what a guest has written since a time, and maybe some before it.

    From the last start, or mark of a stream, that is not after the time;
    where there is none, from the beginning.

    :param marks: see stream/state.py
    :raises LogError: the starts cannot be read
    """
    known = [*((one.time, one.positions[port])
               for one in _boots(path, port)),
             *((mark.time, mark.position) for mark in marks)]
    before = [one for one in known if one[0] <= moment]
    if not before:
        return Span()
    latest, position = max(before, key=lambda one: one[0])
    return Span(position, None, latest)


def _boots(path: str, port: int) -> list[boot.Boot]:
    return [one for one in boot.read(os.path.dirname(path))
            if port in one.positions]
