# SPDX-License-Identifier: Apache-2.0
"""The inbox holds what comes from another host, until it is in its place.

The instance directory has one directory for it, whose name says how far it
is. Each arrow is one rename, and what a crash leaves goes on from there::

    console.moving    the other host copies: files in any order, with holes
         |            all names are there, each with its size
    console.arrived   out of reach of the copy; digests are checked, files
         |            are synced
    console.placing   each file is renamed into place, the starts are noted,
         |            the departure is noted in console.received
    console.placed    is removed; the other host fetches console.received,
                      and removes what it has kept

What is not as it should be is said and removed; it is noted in
``console.received`` why, where it came whole.
"""

import contextlib
import functools
import itertools
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from virtlogd_driver import exception
from virtlogd_driver.console_log import chain, generation, log
from virtlogd_driver.console_log.directory import open_directory
from virtlogd_driver.history import boot, files, logs, record

MOVING = logs.MOVING
ARRIVED = 'console.arrived'
PLACING = 'console.placing'
PLACED = 'console.placed'

#: In PLACING: by serial port, the name that its history gets.
_TARGETS = 'targets'
#: Of earlier versions: a list of all that is staged, and a digest in each
#: name.
_OLD_LIST = 'console.staged'
_OLD_NAME = re.compile(r'(?P<name>.+)\.(?P<digest>[0-9a-f]{32})')

#: Bytes of a history, where it is not asked how many.
_ANY = 1 << 62

_UUID = re.compile(r'[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}')


class Refused(Exception):
    """What has come cannot be put in place, and why."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place says where what comes is to go, and what may be there."""

    #: Path of the instance directory.
    directory: str
    #: The most bytes of a history.
    limit: int
    #: How many serial ports the guest has.
    ports: int = record.MAX_PORTS
    #: By serial port, the generation that its domain names; None: it has
    #: none that runs.
    in_use: Mapping[int, int] | None = None


@dataclass(frozen=True, slots=True)
class _Staged:
    record: record.Record
    #: By serial port, the name of its file.
    names: Mapping[int, str]
    #: Sizes are not known beforehand.
    old: bool = False


def paths(directory: str) -> list[str]:
    """Paths of what something that comes to a directory is in."""
    return [f'{directory}/{name}'
            for name in (MOVING, ARRIVED, PLACING, PLACED)]


def is_coming(directory: str) -> bool:
    """Whether something has begun to come, or is not in place yet."""
    return any(map(files.is_directory, paths(directory)))


def is_promised(directory: str, log_names: Collection[str]) -> bool:
    """Whether the guest has come, and what it wrote before is to follow.

    Only this driver, at the host that a guest leaves, names a log of a later
    generation; and what would be older than it is not here.

    :param log_names: names of the logs that its domain has
    """
    if logs.received(directory):
        return False
    names = logs.written(directory)
    return any(
        file.generation > 0 and not any(
            (other := generation.parse(name)) is not None
            and other.port == file.port
            and (other.history or other.generation < file.generation)
            for name in names)
        for file in map(generation.parse, log_names) if file is not None)


def is_awaited(directory: str, log_names: Collection[str]) -> bool:
    """Whether something comes for a guest, or is to come."""
    return is_coming(directory) or is_promised(directory, log_names)


def coming(instances_path: str) -> list[str]:
    """UUIDs of guests that something comes for, or is not in place yet."""
    return [name for name in files.names(instances_path)
            if _UUID.fullmatch(name) and any(map(
                files.may_exist, paths(os.path.join(instances_path, name))))]


def orphans(instances_path: str) -> list[str]:
    """Paths of directories that hold nothing but what has come.

    Where a guest is gone, the copy of legacy scp or rsync makes its directory
    anew. Whether it is gone is for the caller to find out, and to look again.
    """
    ours = re.compile(
        r'history\.[0-9]+|console\.(moving|arrived|placing|placed|received'
        r'|lock)|' + re.escape(record.FILE))
    found = []
    for name in files.names(instances_path):
        path = os.path.join(instances_path, name)
        aside = name.endswith('_console')
        # One whose disk does not tell is no orphan yet.
        with contextlib.suppress(OSError):
            if _UUID.fullmatch(name.removesuffix('_console')) and (
                    files.is_directory(path)) and (aside or all(
                        ours.fullmatch(inner) or _OLD_NAME.fullmatch(inner)
                        for inner in files.names(path))):
                found.append(path)
    return found


def give_up(directory: str) -> None:
    """Note that what was promised has not come: nobody waits for it again.

    It is put in place all the same, when it comes.
    """
    logs.note_received(directory, {'-': 'waited for in vain'})


def is_complete(place: Place) -> bool:
    """Whether all that is coming is there: names and sizes."""
    directory = place.directory
    if any(files.is_directory(os.path.join(directory, name))
           for name in (ARRIVED, PLACING, PLACED)):
        return True
    staging = os.path.join(directory, MOVING)
    try:
        staged = _load(staging, place.limit)
    except record.InvalidRecord:
        # It is to be refused.
        return True
    if staged is None:
        return False
    return all(
        _has_digest(os.path.join(staging, staged.names[h.port]), h.digest)
        if staged.old else
        files.size(os.path.join(staging, staged.names[h.port])) == h.size
        for h in staged.record.histories)


def discard_incomplete(place: Place) -> bool:
    """Remove what had begun to come when this host went down.

    After a power cut it may never become whole. Its source has kept all, finds
    that it is not here, and copies it again; that of an earlier version of
    this driver has not, and what it has sent stays.

    :returns: whether there was something
    """
    staging = os.path.join(place.directory, MOVING)
    if (not files.is_directory(staging) or is_complete(place)
            or any(map(_OLD_NAME.fullmatch, files.names(staging)))):
        return False
    files.remove_tree(staging)
    return True


def receive(place: Place) -> list[str]:
    """Put in place what has come whole; go on with what was begun.

    The caller has the lock of the guest.

    :returns: what was refused, and why
    :raises LogError, OSError: it cannot be put in place now
    """
    said = []
    at = functools.partial(os.path.join, place.directory)
    files.remove_tree(at(PLACED))
    said += _place(place)
    if files.is_directory(at(ARRIVED)):
        said += _check(place)
    elif files.exists(at(ARRIVED)):
        os.unlink(at(ARRIVED))
    if files.exists(at(MOVING)) and not files.is_directory(at(MOVING)):
        os.unlink(at(MOVING))
    if files.is_directory(at(MOVING)) and is_complete(place):
        files.rename(at(MOVING), at(ARRIVED))
        files.sync_directory(place.directory)
        said += _check(place)
    return said


def _check(place: Place) -> list[str]:
    """Check what has arrived, and put it in place."""
    staging = os.path.join(place.directory, ARRIVED)
    departure = None
    try:
        staged = _load(staging, place.limit)
        if staged is None:
            raise Refused('it has no record')
        departure = staged.record.departure
        if departure in logs.received(place.directory):
            files.remove_tree(staging)
            return []
        for history in staged.record.histories:
            if history.port >= place.ports:
                raise Refused(f'the guest has no serial port {history.port}')
            path = os.path.join(staging, staged.names[history.port])
            try:
                has_come = _has_digest(path, history.digest)
            except OSError:
                if staged.old:
                    raise   # its source has it no more
                has_come = False
            if not has_come:
                # It is sent again.
                departure = None
                raise Refused(f'the history of serial port {history.port} '
                              f'has not come as it was sent')
        # Also what says what the others are.
        for path in (os.path.join(staging, name)
                     for name in files.names(staging)):
            if files.size(path) is not None:
                files.sync(path)
        targets = {history.port: _target(place, staged.record, history)
                   for history in staged.record.histories}
    except (Refused, record.InvalidRecord) as e:
        return _refuse(place, staging, departure, e)
    path = os.path.join(staging, _TARGETS)
    files.remove_tree(path)
    files.write(path, json.dumps(targets).encode())
    files.sync_directory(staging)
    files.rename(staging, os.path.join(place.directory, PLACING))
    files.sync_directory(place.directory)
    return _place(place)


def _refuse(place: Place, staging: str, departure: str | None,
            why: Exception) -> list[str]:
    """Remove what is not as it should be.

    :param departure: None: it is sent again
    :returns: why
    """
    if departure is not None:
        logs.note_received(place.directory, {departure: str(why)})
    files.remove_tree(staging)
    return [str(why)]


def _target(place: Place, sent: record.Record,
            history: record.History) -> str:
    """The name that a history gets.

    :raises Refused: there is none where it surely belongs
    :raises LogError: there is no higher number
    """
    port, directory = history.port, place.directory
    present = logs.generations(directory, port)
    if sent.stint:
        gap = _gap(present, history.generation - 1)
        if gap is not None:
            return generation.live_name(port, gap)
        if place.in_use is not None:
            raise Refused('the guest has gone on in the same log')
        return generation.live_name(
            port, max(present) + 1 if present else history.generation)
    first = min(present, default=history.generation)
    name = generation.history_name(port, first)
    if any(file.port == port and file.history and files.size(
            os.path.join(directory, str(file)))
           for file in map(generation.parse, files.names(directory))
           if file is not None):
        raise Refused('there is another history already')
    return name


def _gap(present: list[int], own: int) -> int | None:
    """A number that has others on both sides; None: there is none.

    Its own, where others are to come. Another number goes on from it where the
    guest had begun there before its history had come.

    :param present: in order
    """
    if not present:
        return None
    if present[0] < own < present[-1] and own not in present:
        return own
    return max((after - 1 for before, after in itertools.pairwise(present)
                if after - before > 1), default=None)


def _place(place: Place) -> list[str]:
    """Put in place what was checked, from where a crash has left it.

    Or what another host calls so: it is looked at once more what goes where.

    :returns: what was refused, and why
    :raises LogError: it is larger than the limit is by now, and stays
    """
    directory = place.directory
    staging = os.path.join(directory, PLACING)
    if not files.is_directory(staging):
        return []
    departure = None
    try:
        staged = _load(staging, _ANY, begun=True)
        if staged is None:
            raise Refused('it has no record')
        departure = staged.record.departure
        targets = _targets(place, staging, staged)
    except (Refused, record.InvalidRecord) as e:
        return _refuse(place, staging, departure, e)
    for history in staged.record.histories:
        name = targets[str(history.port)]
        here = os.path.join(staging, staged.names[history.port])
        if files.exists(here):
            _put(here, os.path.join(directory, name), history)
        if staged.record.stint:
            _begin_after(directory, name)
    files.sync_directory(directory)
    if staged.record.boots:
        _place_boots(directory, staged.record, targets)
    # The newest stay noted: those that it contains came before it.
    logs.note_received(directory, dict.fromkeys(
        [*staged.record.received, staged.record.departure], ''))
    placed = os.path.join(directory, PLACED)
    files.rename(staging, placed)
    files.remove_tree(placed)
    return []


def _targets(place: Place, staging: str,
             staged: _Staged) -> dict[str, str]:
    """By serial port, the name that was given to its history.

    :raises Refused: a history is not to get it, or is not of its size
    :raises InvalidRecord: the names cannot be read
    :raises LogError: a history that is still to be renamed is too large
    """
    try:
        values = record.load(files.read(
            os.path.join(staging, _TARGETS), record.MAX_SIZE))
    except (FileNotFoundError, ValueError) as e:
        raise record.InvalidRecord(str(e)) from e
    found = {}
    for history in staged.record.histories:
        name = values.get(str(history.port)) if isinstance(
            values, dict) else None
        file = generation.parse(name) if isinstance(name, str) else None
        if (file is None or file.port != history.port
                or file.backup is not None
                or file.history is staged.record.stint):
            raise Refused(f'the history of serial port {history.port} is '
                          f'not to become {str(name)[:100]!r}')
        here = os.path.join(staging, staged.names[history.port])
        # What is in its place already the guest may write on in.
        if files.exists(here):
            in_use = (place.in_use or {}).get(file.port)
            if (not file.history and in_use is not None
                    and file.generation >= in_use):
                raise Refused('the guest has gone on in the same log')
            if files.size(here) != history.size:
                raise Refused(f'the history of serial port {history.port} '
                              f'has not {history.size} bytes')
            _check_size(here, history.size, place.limit)
        found[str(history.port)] = str(file)
    return found


def _put(here: str, there: str, history: record.History) -> None:
    """Rename one that has come to its name."""
    mode = 0o600
    if history.whole:
        mode |= chain.FIRST_OF_CHAIN
    # Where the copy has made it another user's, that user alone can.
    with contextlib.suppress(PermissionError):
        fd = files.open_to_read(here)
        try:
            os.fchmod(fd, mode)
        finally:
            os.close(fd)
    if files.size(there) == 0:
        # Of a migration that has failed.
        os.unlink(there)
    files.rename(here, there)


def _begin_after(directory: str, name: str) -> None:
    """The guest does not write on in what has come.

    :param name: of the log that has come
    """
    file = generation.parse(name)
    assert file is not None
    if (file.generation == max(
            logs.generations(directory, file.port), default=None)
            and files.size(os.path.join(directory, name))):
        with contextlib.suppress(FileExistsError):
            chain.begin(os.path.join(directory, generation.live_name(
                file.port, file.generation + 1)))


def _place_boots(directory: str, sent: record.Record,
                 targets: Mapping[str, str]) -> None:
    """Give the starts that have come their positions here."""
    sizes = {history.port: history.size for history in sent.histories}

    def join(present: list[boot.Boot]) -> list[boot.Boot]:
        # Of ports of which nothing has come, or older than what has come:
        # their files have stayed.
        stayed = {noted.time: noted.positions for noted in present}
        come = []
        for noted in sent.boots:
            positions = dict(stayed.get(noted.time, {}))
            for port, count in noted.following.items():
                size = sizes.get(port)
                if size is not None and count is not None and count <= size:
                    positions[port] = log.position_at(
                        opened, targets[str(port)], size - count)
                else:
                    positions.setdefault(port, None)
            come.append(boot.Boot(noted.time, positions, noted.number))
        return boot.joined(come, present)

    with open_directory(directory) as opened:
        boot.change(directory, join)


def _load(staging: str, limit: int, *,
          begun: bool = False) -> _Staged | None:
    """What is staged; None while it is still coming.

    :param begun: some of it may be in its place
    :raises LogError: an earlier version has sent more than the limit
    :raises record.InvalidRecord: it is not as it should be
    """
    try:
        data = files.read(os.path.join(staging, record.FILE),
                          record.MAX_SIZE)
    except FileNotFoundError:
        return _load_old(staging, limit, begun=begun)
    except (OSError, ValueError) as e:
        raise record.InvalidRecord(str(e)) from e
    if not record.is_whole(data):
        return None
    found = record.parse(data, limit)
    return _Staged(found, {h.port: h.file for h in found.histories})


def _load_old(staging: str, limit: int, *,
              begun: bool) -> _Staged | None:
    """Of earlier versions: names with digests, and a list of them."""
    found = {match['name']: match for match in map(
        _OLD_NAME.fullmatch, files.names(staging)) if match is not None}
    listed = found.get(_OLD_LIST)
    if listed is None:
        return None
    data = _old_data(staging, listed)
    if data is None:
        return None
    names = record.load(data)
    if not isinstance(names, list) or len(names) > record.MAX_PORTS + 1:
        raise record.InvalidRecord('it is no list of names')
    histories, boots, of_port = [], [], {}
    for name in names:
        match = _OLD_NAME.fullmatch(name) if isinstance(name, str) else None
        file = None if match is None else generation.parse(match['name'])
        if match is None or (file is None and match['name'] != boot.FILE):
            raise record.InvalidRecord(f'{str(name)[:100]!r} is not expected')
        size = files.size(os.path.join(staging, name))
        if begun and size is None:
            size = -1   # not known any more
        if file is None:
            lines = _old_data(staging, match)
            if lines is None:
                return None
            boots = [record.parse_boot(record.load(line))
                     for line in lines.splitlines()[:record.MAX_BOOTS]]
        elif not file.history or file.port in of_port:
            raise record.InvalidRecord(f'{name!r} is not expected')
        elif size is None:
            return None
        else:
            _check_size(os.path.join(staging, name), size, limit)
            of_port[file.port] = name
            histories.append(record.History(
                file.port, file.generation, size, match['digest'], False))
    return _Staged(record.Record(
        listed['digest'], False, tuple(histories), tuple(boots), ()),
        of_port, old=True)


def _check_size(path: str, size: int, limit: int) -> None:
    """Let what may have no other copy wait, rather than refuse it.

    :raises LogError: it is larger than the limit
    """
    if size > limit:
        raise exception.LogError(
            f'{path} has {size} bytes, and this host takes [virtlogd] '
            f'max_history_bytes = {limit}: raise that until it is in its '
            f'place, or remove it')


def old_name(staging: str, name: str) -> str | None:
    """What an earlier version has staged as a name; None: it is not whole."""
    match = _OLD_NAME.fullmatch(name)
    if match is None or not _has_digest(
            os.path.join(staging, name), match['digest']):
        return None
    return match['name']


def _old_data(staging: str, match: re.Match[str]) -> bytes | None:
    try:
        data = files.read(os.path.join(staging, match[0]), record.MAX_SIZE)
    except FileNotFoundError:
        return None
    except (PermissionError, ValueError) as e:
        raise record.InvalidRecord(str(e)) from e
    return data if record.digest([data]) == match['digest'] else None


def _has_digest(path: str, digest: str) -> bool:
    """Of a regular file that may be read; what is none has none.

    :raises OSError: the disk does not give it
    """
    if files.size(path) is None:
        return False
    try:
        fd = files.open_to_read(path)
    except OSError as e:
        if files.is_irregular(e) or isinstance(
                e, FileNotFoundError | PermissionError):
            return False
        raise
    try:
        return record.digest(_chunks(fd)) == digest
    finally:
        os.close(fd)


def _chunks(fd: int) -> Iterator[bytes]:
    while chunk := os.read(fd, 1 << 20):
        yield chunk
