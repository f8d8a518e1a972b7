# SPDX-License-Identifier: Apache-2.0
"""The name of a log's file tells its serial port and its generation.
Pure: names in, names out.

A guest that moves to another host starts a new generation, so that no two
virtlogd ever write one path. Of serial port 0 and of port 1:

====================  ===========================  =========================
generation            live file                    everything older
====================  ===========================  =========================
0                     ``console.log``               (``console.history``)
                      ``console.port1.log``
1                     ``console.g1.log``           ``console.g1.history``
                      ``console.port1.g1.log``     ``console.port1.g1.history``
====================  ===========================  =========================

virtlogd's backups append ``.0`` (the newest), ``.1`` and so on to the name of
the live file. A history is one file that nobody writes any more. Generation 0
has one only where nova's own driver has begun a log anew beside older ones: it
doesn't go on from them.
"""

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass

from virtlogd_driver import exception

#: max_backups can't be more in virtlogd (VIR_MAX_MAX_BACKUP), so the oldest
#: backup that there can be is ``.31``.
MAX_BACKUPS = 32

#: The highest generation, and the highest serial port, that a name can say:
#: nine digits. No guest moves that often; a file of that name was put there.
MAX_GENERATION = MAX_PORT = 999_999_999

_NAME = re.compile(
    r'console'
    r'(?:\.port(?P<port>[1-9][0-9]{0,8}))?'
    r'(?:\.g(?P<generation>[1-9][0-9]{0,8}))?'
    r'\.(?:(?P<history>history)|log(?:\.(?P<backup>0|[1-9][0-9]{0,8}))?)')


@dataclass(frozen=True, slots=True)
class FileName:
    """The name of a log's file says port, generation and kind."""

    #: Serial port, from 0.
    port: int
    #: How many times the guest had moved, from 0.
    generation: int
    #: Number of the backup, 0 is the newest; None is the live file.
    backup: int | None = None
    #: The history of all generations before this one.
    history: bool = False

    def __str__(self) -> str:
        if self.history:
            return history_name(self.port, self.generation)
        name = live_name(self.port, self.generation)
        return name if self.backup is None else backup_name(name, self.backup)


def live_name(port: int, generation: int) -> str:
    """Give name of the file that virtlogd writes, as in the domain's log file.

    :raises LogError: a number is too high for a name
    """
    return f'{_stem(port, generation)}.log'


def history_name(port: int, generation: int) -> str:
    """Give name of the file with everything older than a generation."""
    return f'{_stem(port, generation)}.history'


def backup_name(live: str, number: int) -> str:
    """Give name of a backup of a live file; number 0 is the newest."""
    return f'{live}.{number}'


@functools.lru_cache
def parse(name: str) -> FileName | None:
    """Tell what a file's name says, or None where it is none of a log."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    return FileName(
        port=int(match['port'] or 0),
        generation=int(match['generation'] or 0),
        backup=None if match['backup'] is None else int(match['backup']),
        history=match['history'] is not None)


def newest(names: Iterable[str], port: int) -> int | None:
    """Give the highest generation of a port among a directory's names.

    That is the live one of a guest which is here. None: there is no log of
    that port.
    """
    return max(
        (found.generation for found in map(parse, names)
         if found is not None and found.port == port),
        default=None)


def generations(names: Iterable[str], port: int) -> dict[int, bool]:
    """Give the generations of a port that have a file, the newest first.

    :returns: whether each has a history
    """
    found: dict[int, bool] = {}
    for file in map(parse, names):
        if file is not None and file.port == port:
            found[file.generation] = (
                file.history or found.get(file.generation, False))
    return {number: found[number] for number in sorted(found, reverse=True)}


def files_of(names: Iterable[str], port: int, generation: int) -> list[str]:
    """Give the files of one generation among a directory's names.

    In the order in which they were written: the history, the backups from the
    oldest to the newest, the live file.
    """
    found = [
        file for file in map(parse, names)
        if file is not None
        and file.port == port and file.generation == generation]
    found.sort(key=lambda file: (
        not file.history, file.backup is None, -(file.backup or 0)))
    return [str(file) for file in found]


def _stem(port: int, generation: int) -> str:
    if port < 0 or generation < 0:
        raise ValueError(f'port {port}, generation {generation}')
    if port > MAX_PORT or generation > MAX_GENERATION:
        raise exception.LogError(
            f'There is no name for a console log of serial port {port} after '
            f'{generation} moves: {MAX_GENERATION} is the highest number. No '
            f'guest moves that often, so a file with that number in its name '
            f'was put beside the log: remove or rename it.')
    return ''.join((
        'console',
        f'.port{port}' if port else '',
        f'.g{generation}' if generation else ''))
