# SPDX-License-Identifier: Apache-2.0
"""The outbox keeps what a guest wrote here until its new host has it.

A directory beside the instance directory, ``<uuid>_leaving.<departure>``:

==================  =======================================================
``departure.json``  where to; written first, never changed
the logs            renamed into it when nova is about to delete the
                    instance directory. Until then they are there, or in
                    nova's ``<uuid>_resize``
``console.moving``  what is copied: made again whenever it is not there
``state.json``      how the copy went last
==================  =======================================================

It is removed when the other host says that it has all (inbox.py), or when the
instance is deleted. Until then the copy is tried again and again.
"""

import contextlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from virtlogd_driver import exception
from virtlogd_driver.console_log import chain, generation, log
from virtlogd_driver.history import boot, files, inbox, logs, record

#: Between an instance directory's name and a departure.
LEAVING = '_leaving.'

_DEPARTURE = 'departure.json'
_STATE = 'state.json'
#: Of departure.json.
_VERSION = 1
_NAME = re.compile(r'(?P<guest>[0-9a-f-]{36})_leaving\.(?P<departure>.+)')

#: Gives the newest bytes of the log with a path, at most so many.
Read = Callable[[str, int], bytes]
#: Gives how many bytes of the log with a path follow a position; None where
#: it is not there any more.
Following = Callable[[str, log.Position], int | None]


@dataclass(frozen=True, slots=True)
class Departure:
    """A guest leaves this host, or has left it."""

    #: 32 hexadecimal digits.
    id: str
    #: UUID.
    guest: str
    #: Address of the host that it goes to, as nova copies to it.
    address: str
    #: Name of that host, as nova knows it; '' where that is not known.
    host: str
    #: Path of its instance directory there.
    directory: str
    #: By serial port, the generation that goes on there.
    generations: dict[int, int]
    #: By serial port, the oldest generation that the other host does not
    #: have, where it goes back; None: it has none.
    stint: dict[int, int] | None
    #: Seconds since the epoch.
    since: float


@dataclass(frozen=True, slots=True)
class State:
    """The state says how the copy went last."""

    attempts: int = 0
    #: It is there, but not in its place.
    copied: bool = False
    #: What is in the way; '': nothing yet.
    reason: str = ''
    #: Nothing that is tried again would help.
    final: bool = False

    def again(self, reason: str | None = None) -> 'State':
        """The state after one try more.

        :param reason: what is in the way now; None: the same
        """
        return State(self.attempts + 1, self.copied,
                     self.reason if reason is None else reason)


@dataclass(frozen=True, slots=True)
class Waiting:
    """Older output of a guest waits, as it has not followed it."""

    #: UUID of the guest.
    guest: str
    #: Path of the directory where it is.
    path: str
    #: Name or address of the host that it is to go to; '': not known.
    host: str
    #: Seconds since the epoch.
    since: float
    #: How often it was tried.
    attempts: int
    #: What is in the way, for people.
    reason: str


def waiting(instances_path: str) -> list[Waiting]:
    """What waits on this host, the oldest first.

    A guest that has just left is among them until its host has all.

    :param instances_path: nova's option
    """
    found = []
    for path in paths(instances_path):
        try:
            one = _waiting(path)
        except FileNotFoundError:
            continue   # it has just gone
        except OSError as e:
            since = time.time()
            with contextlib.suppress(OSError):
                since = os.lstat(path).st_mtime
            one = Waiting(guest_of(path), path, '', since, 0,
                          f'it cannot be looked at: {e.strerror}')
        if one is not None:
            found.append(one)
    return sorted(found, key=lambda w: w.since)


def _waiting(path: str) -> Waiting | None:
    guest = guest_of(path)
    departure, state = load(path), load_state(path)
    if departure is None:
        return Waiting(
            guest, path, '', os.lstat(path).st_mtime, 0,
            'nova-compute looks where to at its next start')
    if not is_filled(path) and not state.attempts:
        return None
    return Waiting(
        guest, path, departure.host or departure.address, departure.since,
        state.attempts, state.reason or 'it is on its way')


def paths(instances_path: str, guest: str | None = None) -> list[str]:
    """Paths of all outboxes, or of those of one guest."""
    return [os.path.join(instances_path, name)
            for name in files.names(instances_path)
            if (match := _NAME.fullmatch(name)) is not None
            and guest in (None, match['guest'])]


def guest_of(path: str) -> str:
    """UUID of the guest that an outbox is of."""
    return os.path.basename(directory_of(path))


def directory_of(path: str) -> str:
    """Path of the instance directory that an outbox is beside."""
    return path.partition(LEAVING)[0]


def new_id() -> str:
    return secrets.token_hex(16)


def path_of(instance_directory: str, departure: str) -> str:
    return f'{instance_directory}{LEAVING}{departure}'


def make(instance_directory: str, departure: Departure) -> str:
    """Begin a departure. Nothing is taken away yet.

    :param instance_directory: its path
    :returns: path of the outbox
    :raises OSError: it cannot be made
    """
    path = path_of(instance_directory, departure.id)
    os.mkdir(path, 0o700)
    try:
        address(path, departure)
        files.sync_directory(os.path.dirname(path))
    except OSError:
        with contextlib.suppress(OSError):
            files.remove_tree(path)
        raise
    return path


def address(path: str, departure: Departure) -> None:
    """Write down where what is in an outbox is to go.

    :raises OSError: it cannot be written
    """
    new = os.path.join(path, f'{_DEPARTURE}{files.NEW}')
    files.remove(new)
    files.write(new, json.dumps({
        'version': _VERSION, 'id': departure.id, 'guest': departure.guest,
        'address': departure.address, 'host': departure.host,
        'directory': departure.directory,
        'generations': departure.generations, 'stint': departure.stint,
        'since': departure.since}).encode())
    os.rename(new, os.path.join(path, _DEPARTURE))
    files.sync_directory(path)


def load(path: str) -> Departure | None:
    """None: it has none, or one that this version cannot read.

    :raises OSError: its disk does not tell
    """
    try:
        values = record.load(files.read(
            os.path.join(path, _DEPARTURE), record.MAX_SIZE))
        if values['version'] != _VERSION:
            return None
        return Departure(
            str(values['id']), str(values['guest']), str(values['address']),
            str(values['host']), str(values['directory']),
            _by_port(values['generations']),
            None if values['stint'] is None else _by_port(values['stint']),
            _time(values['since']))
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError,
            TypeError, AttributeError, record.InvalidRecord):
        return None


def _by_port(values: Any) -> dict[int, int]:
    found = {int(port): int(number) for port, number in values.items()}
    if not all(0 <= port <= generation.MAX_PORT
               and 0 <= number <= generation.MAX_GENERATION
               for port, number in found.items()):
        raise ValueError(values)
    return found


def _time(value: Any) -> float:
    found = float(value)
    if not 0 <= found < boot.LATEST:
        raise ValueError(value)
    return found


def load_state(path: str) -> State:
    try:
        values = record.load(files.read(
            os.path.join(path, _STATE), record.MAX_SIZE))
        return State(max(0, int(values['attempts'])), bool(values['copied']),
                     str(values['reason']), bool(values['final']))
    except (OSError, ValueError, KeyError, TypeError, AttributeError,
            record.InvalidRecord):
        return State()


def save_state(path: str, state: State) -> None:
    """Write down how the copy went; without, it is tried again sooner."""
    with contextlib.suppress(OSError):
        files.replace(os.path.join(path, _STATE), json.dumps({
            'attempts': state.attempts, 'copied': state.copied,
            'reason': state.reason[:1000], 'final': state.final}).encode())


def fill(path: str | None, directory: str) -> str:
    """Rename a guest's logs into its outbox, before nova deletes them.

    The directory as a whole, where there is no room for another: where to is
    found out later (:func:`address`).

    :param path: of the outbox; None: it could not be made
    :returns: path of the outbox, which is another one then
    :raises OSError: some are still where they were
    """
    if path is not None:
        try:
            logs.move(directory, path)
            return path
        except OSError:
            if load_state(path) != State() or not logs.names(directory):
                raise
            # It had room for some: they get their old names again.
            if not logs.move(path, directory):
                raise
            with contextlib.suppress(OSError):
                discard(path)
    path = path_of(logs.instance_directory(directory), new_id())
    files.rename(directory, path)
    with contextlib.suppress(OSError):
        files.sync_directory(os.path.dirname(path))
    # What was coming has not been put in place: its host has it.
    files.remove_tree(os.path.join(path, logs.MOVING))
    logs.keep_logs_alone(path)
    return path


def is_filled(path: str) -> bool:
    """Whether the logs are in the outbox, not where nova has them."""
    return bool(logs.names(path))


def source(path: str) -> str:
    """Path of the directory that its logs are in."""
    resized = logs.resized(directory_of(path))
    return (path if is_filled(path) or not files.is_directory(resized)
            else resized)


def fetched(path: str) -> str:
    """Path of a directory for what is fetched from the other host."""
    return os.path.join(path, 'fetched')


def finish(path: str, departure: Departure) -> None:
    """Remove what the other host has.

    Where the logs stay in nova's directory until a cold migration is
    confirmed, the guest goes on in new ones if it comes back: what it writes
    meanwhile goes between.
    """
    here = source(path)
    if here != path and departure.stint is None and not is_delivered(here):
        for port in logs.ports(here):
            last = generation.newest(files.names(here), port) or 0
            with contextlib.suppress(FileExistsError):
                chain.begin(os.path.join(
                    here, generation.live_name(port, last + 2)))
        files.sync_directory(here)
    discard(path)


def is_delivered(resized: str) -> bool:
    """Whether the other host has what is in nova's directory (finish)."""
    names = files.names(resized)
    return any(
        logs.is_as_begun(os.path.join(
            resized, generation.live_name(port, last)))
        and not generation.files_of(names, port, last - 1)
        for port in logs.ports(resized)
        if (last := generation.newest(names, port)) is not None and last > 1)


def remove_delivered(resized: str) -> None:
    """Remove the logs that the other host has, as nova is about to.

    What says so is removed last: an end amid nova's deletion leaves nothing
    that would be sent again.
    """
    marks = [name for name in logs.names(resized)
             if logs.is_as_begun(os.path.join(resized, name))]
    for name in [*logs.names(resized), *marks]:
        if name not in marks or not set(logs.names(resized)) - set(marks):
            files.remove(os.path.join(resized, name))


def unsent(instances_path: str) -> list[str]:
    """Paths of instance directories whose logs wait in nova's ``_resize``.

    There was no room for an outbox when their guests left.
    """
    found = []
    for name in files.names(instances_path):
        resized = os.path.join(instances_path, name)
        directory = logs.instance_directory(resized)
        # One whose disk does not tell waits for the next start.
        with contextlib.suppress(OSError):
            if (resized == logs.resized(directory)
                    and not files.exists(directory)
                    and not paths(instances_path, os.path.basename(directory))
                    and logs.names(resized) and not is_delivered(resized)):
                found.append(directory)
    return found


def discard(path: str) -> None:
    """Remove an outbox: what is in it is elsewhere, or wanted no more.

    :raises OSError: some of it stays
    """
    files.remove_tree(os.path.join(path, logs.MOVING))
    # Last, as the rest means nothing without it.
    for name in files.names(path):
        if name != _DEPARTURE:
            files.remove_tree(os.path.join(path, name))
    files.remove_tree(path)


def stage(path: str, limit: int, read: Read,
          following: Following) -> str:
    """Make what is to be copied, if it is not there.

    :returns: path of the directory that is to be copied
    :raises LogError: a log cannot be read
    :raises OSError: nothing can be written
    """
    departure = load(path)
    assert departure is not None
    staging = os.path.join(path, logs.MOVING)
    if files.is_directory(staging):
        return staging
    new = f'{staging}{files.NEW}'
    files.remove_tree(new)
    os.mkdir(new, 0o700)
    here = source(path)
    present = files.names(here)
    lives = {port: generation.live_name(
        port, generation.newest(present, port) or 0)
        for port in logs.ports(here)}
    histories = []
    for port, live in sorted(lives.items()):
        paths = _paths(here, port, departure)
        size = sum(files.size(path) or 0 for path in paths)
        # Of a stint no more than it has: the rest is there already.
        bound = limit if departure.stint is None else min(limit, size)
        try:
            data = read(os.path.join(here, live), bound)
        except exception.LogNotFound:
            continue
        if not data and departure.stint is None:
            continue
        found = record.History(
            port, departure.generations.get(port, 1), len(data),
            record.digest([data]),
            bool(paths) and logs.is_first(paths[0]) and len(data) == size)
        files.write(os.path.join(new, found.file), data)
        histories.append(found)
    files.write(os.path.join(new, record.FILE), record.Record(
        departure.id, departure.stint is not None, tuple(histories),
        _boots(here, lives, following), tuple(
            d for d, reason in logs.received(here).items()
            if not reason and len(d) == 32)).format())
    files.rename(new, staging)
    return staging


def _paths(here: str, port: int, departure: Departure) -> list[str]:
    """Paths of what is to go, the oldest first."""
    found, stint = files.names(here), departure.stint
    return [os.path.join(here, name)
            for number in sorted(generation.generations(found, port))
            if stint is None or number >= stint.get(port, number)
            for name in generation.files_of(found, port, number)
            if stint is None or not name.endswith('.history')]


def _boots(here: str, lives: dict[int, str],
           following: Following) -> tuple[record.Boot, ...]:
    """Positions mean nothing elsewhere: how many bytes follow them does."""
    def count(port: int, position: log.Position | None) -> int | None:
        if position is None or port not in lives:
            return None
        # None as well where the log cannot be read, as stage has said.
        with contextlib.suppress(exception.LogError):
            return following(os.path.join(here, lives[port]), position)
        return None

    return tuple(record.Boot(noted.time, {
        port: count(port, position)
        for port, position in noted.positions.items()
        # Another is of a line that is damaged, and the other host takes none.
        if 0 <= port < record.MAX_PORTS}, noted.number)
        for noted in boot.read(here)[-record.MAX_BOOTS:])


def adopt_old(path: str) -> None:
    """Take what an earlier version has left for this version's.

    It had one file for each port, staged, and nothing that says where to.

    :raises OSError: some of it cannot be renamed
    """
    staging = os.path.join(path, logs.MOVING)
    for name in files.names(staging):
        match = inbox.old_name(staging, name)
        file = None if match is None else generation.parse(match)
        if file is not None and file.history:
            files.rename(os.path.join(staging, name), os.path.join(
                path, generation.live_name(file.port, 0)))
    if is_filled(path):
        files.sync_directory(path)
        files.remove_tree(staging)
        logs.keep_logs_alone(path)


def begin_departure(
        guest: str, address: str, host: str, directory: str,
        generations: dict[int, int],
        stint: dict[int, int] | None = None) -> Departure:
    """A departure that begins now."""
    return Departure(new_id(), guest, address, host, directory, generations,
                     stint, time.time())
