# SPDX-License-Identifier: Apache-2.0
"""Rows are shown in columns, for a terminal and for people."""

import datetime
from collections.abc import Sequence

_UNITS = ('K', 'M', 'G', 'T', 'P')


def lines(head: Sequence[str], rows: Sequence[Sequence[str]],
          right: frozenset[str] = frozenset()) -> list[str]:
    """Give a table as lines, each column as wide as it needs.

    :param right: heads of the columns that are aligned to the right
    """
    widths = [max(map(len, column))
              for column in zip(head, *rows, strict=True)]
    return ['  '.join(
        cell.rjust(size) if name in right else cell.ljust(size)
        for name, cell, size in zip(head, row, widths, strict=True)).rstrip()
        for row in (head, *rows)]


def size(count: int) -> str:
    """Write bytes as ls -h does."""
    if count < 1024:
        return str(count)
    value = float(count)
    unit = ''
    for unit in _UNITS:  # noqa: B007
        value /= 1024
        if value < 1000:
            break
    return f'{value:.1f}{unit}' if value < 10 else f'{value:.0f}{unit}'


def date(seconds: float, precision: str = 'seconds') -> str | None:
    """Write a time as RFC 3339 has it; None: it is no date.

    :param seconds: since the epoch, as others have noted them
    :param precision: see datetime.isoformat
    """
    try:
        return datetime.datetime.fromtimestamp(
            seconds, datetime.UTC).isoformat(timespec=precision)
    except (OverflowError, ValueError, OSError):
        return None


def age(seconds: float) -> str:
    """Tell how long ago, in the largest unit."""
    for unit, length in (('d', 86400), ('h', 3600), ('min', 60)):
        if seconds >= length:
            return f'{seconds // length:.0f} {unit}'
    return f'{max(seconds, 0):.0f} s'


def since(seconds: float, now: float) -> str:
    """Tell how long ago a time was; "-": it is no date."""
    return '-' if date(seconds) is None else age(now - seconds)
