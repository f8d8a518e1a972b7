# SPDX-License-Identifier: Apache-2.0
"""The logs of deleted instances are kept for a while, where that is wished.

Each arrow is a rename, and what a crash leaves goes on from there::

    <uuid>, <uuid>_resize, <uuid>_console, <uuid>_leaving.<departure>
         |            log by log, once deleted.json says whose they are
    <uuid>_deleted
         |            as a whole: it is kept
    deleted_console_logs/<host>/<uuid>.<when>.<seconds>.<bytes>
         |            as a whole: it is too old, or there is too much
    deleted_console_logs/<host>/<uuid>.<when>.<seconds>.<bytes>.gone
                      is removed

Names alone tell what is to go: when it was deleted (milliseconds since the
epoch), for how long it was meant to be kept, how much was written. All is in
instances_path, so that renames are enough. nova goes by names there, too, and
has none of these.

Where hosts share instances_path each bounds what it has kept itself, by what
is configured now. What another host has kept it removes when the time is over
that that host meant it for: it may be there no more.
"""

import contextlib
import datetime
import json
import os
import re
import stat
import time
import urllib.parse
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from virtlogd_driver.console_log import generation
from virtlogd_driver.history import boot, files, logs, outbox, record

#: Name of the directory in instances_path.
DIRECTORY = 'deleted_console_logs'

_ABOUT = 'deleted.json'
_SUFFIX = '.gone'
_UUID = r'[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}'
_NAME = re.compile(
    rf'(?P<guest>{_UUID})'
    r'\.(?P<when>[0-9]{1,15})'
    r'\.(?P<seconds>[0-9]{1,15})\.(?P<size>[0-9]{1,18})')
_BEGUN = re.compile(f'{_UUID}_deleted')
#: What an entry takes besides its logs: its directory and two small files.
_BESIDES = 3 * 4096
#: Seconds that entries are removed for before the rest is left to the next
#: pass: others wait for the same disk.
LONGEST_CLEANING = 2.0
#: Seconds from which on what was begun is late.
LATE = 60.0
#: Seconds that another host may take to finish what a crash has left.
LOCK_TIMEOUT = 5.0
#: Characters of a text of nova's.
_LONGEST = 500


@dataclass(frozen=True, slots=True)
class Keeping:
    """It is configured what is kept on this host."""

    #: nova's option.
    instances_path: str
    #: Name of this host, as nova knows it.
    host: str
    #: For so many seconds; 0: nothing is.
    seconds: int
    #: And so many bytes of all logs together.
    limit: int

    @property
    def directory(self) -> str:
        """Path of the directory of what this host has kept."""
        return os.path.join(self.instances_path, DIRECTORY,
                            urllib.parse.quote(self.host, safe=''))


@dataclass(frozen=True, slots=True)
class About:
    """It is said of a log whose it was."""

    #: libvirt's name of the guest; '' where it is not known, as of the others.
    name: str = ''
    #: The server's name for its user.
    display_name: str = ''
    #: Id of its project.
    project: str = ''
    #: Why nova has deleted its files.
    why: str = ''


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry is the log of a deleted instance."""

    #: Path of the directory that the logs are in.
    path: str
    #: UUID of the guest.
    uuid: str
    #: When nova deleted its files, in milliseconds since the epoch.
    when: int
    #: For how long its host meant to keep it.
    seconds: int
    #: Bytes of its logs.
    size: int

    @property
    def id(self) -> str:
        """The name that no other entry of this host has."""
        return os.path.basename(self.path)


@dataclass(frozen=True, slots=True)
class Stock:
    """A stock is what a host keeps, in numbers."""

    #: Kept logs.
    count: int
    #: Bytes of them.
    size: int
    #: When the guest of the oldest was deleted, in seconds since the epoch;
    #: None: there is none.
    oldest: float | None
    #: Logs that are to be kept, which has failed until now.
    late: int
    #: Why nothing can be kept, and what to do; '': it can be.
    fault: str


@dataclass(frozen=True, slots=True)
class Kept:
    """A kept log, for people: what is known of it and of its guest."""

    entry: Entry
    about: About
    #: Name of the host that has kept it.
    host: str

    @property
    def uuid(self) -> str:
        return self.entry.uuid

    @property
    def name(self) -> str:
        """libvirt's name of the guest, or else its UUID."""
        return self.about.name or self.uuid


def parse(path: str) -> Entry | None:
    """Give the entry that a path is the name of; None: of none."""
    match = _NAME.fullmatch(os.path.basename(path))
    # A later time is no date that can be told.
    if match is None or int(match['when']) >= boot.LATEST * 1000:
        return None
    return Entry(path, match['guest'], int(match['when']),
                 int(match['seconds']), int(match['size']))


def superfluous(entries: Iterable[Entry], seconds: float, limit: int,
                now: int) -> list[Entry]:
    """Choose what is to go: the oldest first. Pure.

    :param seconds: that each is kept
    :param limit: bytes that all may take together
    :param now: milliseconds since the epoch
    """
    chosen, left = [], limit
    for entry in sorted(entries, key=lambda entry: entry.when, reverse=True):
        size = entry.size + _BESIDES
        if now - entry.when >= seconds * 1000 or size > limit:
            chosen.append(entry)
        elif size > left:
            # And all that is older.
            left = 0
            chosen.append(entry)
        else:
            left -= size
    return chosen[::-1]


def entries(directory: str) -> list[Entry]:
    """What is kept in a directory, in no order."""
    found = (parse(os.path.join(directory, name))
             for name in files.names(directory))
    return [entry for entry in found if entry is not None]


def stock(keeping: Keeping, now: float) -> Stock:
    """Look at what this host keeps, and whether it can.

    Names alone are looked at, so it costs the same however much was written.

    :param now: seconds since the epoch
    """
    found: list[Entry] = []
    late = 0
    fault = _fault(keeping)
    if not fault:
        try:
            found = entries(keeping.directory)
            late = sum(_is_late(logs.deleted_directory(directory), now)
                       for directory in begun(keeping.instances_path))
        except OSError as e:
            fault = _unusable(e)
    return Stock(len(found), sum(entry.size for entry in found), min(
        (entry.when / 1000 for entry in found), default=None), late, fault)


def _is_late(path: str, now: float) -> bool:
    try:
        return now - os.lstat(path).st_mtime >= LATE
    except FileNotFoundError:
        return False


def _fault(keeping: Keeping) -> str:
    """Tell why nothing can be kept, and what to do; '': it can be."""
    try:
        above = os.stat(keeping.instances_path)
        for path in (os.path.dirname(keeping.directory), keeping.directory):
            try:
                here = os.lstat(path)
            except FileNotFoundError:
                break   # it is made when it is needed
            if not stat.S_ISDIR(here.st_mode):
                return (f'{path} is no directory. Let nova-compute make one: '
                        f'rename what is there.')
            if here.st_dev != above.st_dev:
                return (f'{path} is not of the file system of '
                        f'{keeping.instances_path}, from where logs are '
                        f'renamed. Let nothing be mounted there.')
            if here.st_uid not in (0, above.st_uid) or (
                    here.st_mode & stat.S_IRWXU != stat.S_IRWXU):
                return (f'{path} is not for nova-compute to write. Let it '
                        f'belong to the user of {keeping.instances_path}, '
                        f'with mode 0700.')
        system = os.statvfs(keeping.instances_path)
    except OSError as e:
        return _unusable(e)
    if system.f_flag & os.ST_RDONLY:
        return (f'{keeping.instances_path} is mounted read-only. See what the '
                f'kernel says of its disk.')
    if not system.f_bavail or (system.f_files and not system.f_favail):
        return f'{keeping.instances_path} is full. Free some space.'
    return ''


def _unusable(error: OSError) -> str:
    return (f'{error.filename} cannot be looked at ({error.strerror}). See to '
            f'it, and run this as root or as the user of nova-compute.')


def kept(instances_path: str) -> list[Kept]:
    """What is kept, by whichever host, the oldest first.

    :raises OSError: it may not be looked at
    """
    found = [_look(host, entry) for host, directory in _hosts(instances_path)
             for entry in entries(directory)]
    return sorted(found, key=lambda one: one.entry.when)


def places(instances_path: str, uuid: str) -> list[str]:
    """Where the log of one guest may be kept, or is about to be."""
    found = [entry for _, directory in _hosts(instances_path)
             for entry in entries(directory) if entry.uuid == uuid]
    return [os.path.join(instances_path, f'{uuid}_deleted'),
            *[entry.path for entry in found]]


def _hosts(instances_path: str) -> list[tuple[str, str]]:
    """Names of hosts that have kept something, each with its directory."""
    top = os.path.join(instances_path, DIRECTORY)
    return [(urllib.parse.unquote(name), os.path.join(top, name))
            for name in files.names(top)]


def _look(host: str, entry: Entry) -> Kept:
    """Also where what it says of itself cannot be read, or is not ours."""
    values: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, record.InvalidRecord):
        found = record.load(files.read(
            os.path.join(entry.path, _ABOUT), record.MAX_SIZE))
        values = found if isinstance(found, dict) else {}
    texts = {field: value[:_LONGEST] for field in (
        'name', 'display_name', 'project', 'why')
        if isinstance(value := values.get(field), str)}
    return Kept(entry, About(**texts), host)


# Keeping

def keep(keeping: Keeping, directory: str, about: About,
         now: float) -> Entry | None:
    """Keep the logs of a guest that is gone, before nova deletes them.

    The caller has the lock of the guest. What an attempt before this one has
    left goes along. Where some of it cannot be kept, the rest is.

    :param directory: path of its instance directory
    :param now: seconds since the epoch
    :returns: None: nothing was written
    :raises OSError: it is not kept, or not all of it
    """
    begun = logs.deleted_directory(directory)
    found = _sources(directory)
    if not any(map(_written, (begun, *found))):
        return None
    files.make_directory(begun)
    with files.locked(begun, LOCK_TIMEOUT):
        # Another host may have taken it for what a crash has left.
        files.make_directory(begun)
        # Without a description it is a log all the same.
        with contextlib.suppress(OSError):
            _describe(begun, keeping, about, now)
        try:
            logs.gather(found, begun)
        finally:
            entry = _commit(keeping, begun, now)
    return entry


def _sources(directory: str) -> list[str]:
    """Where logs of a guest may be, the newest first.

    :param directory: path of its instance directory
    """
    return [directory, logs.resized(directory),
            logs.aside_directory(directory), *outbox.paths(
                os.path.dirname(directory), os.path.basename(directory))]


def finish(keeping: Keeping, directory: str, now: float) -> bool:
    """Keep what was gathered of a guest until nova-compute was ended.

    Not as long as there are logs of it elsewhere: where nova goes on to
    delete it these go along, and where it does not all are renamed back.
    The caller has the lock of the guest.

    :param directory: path of the instance directory
    :returns: whether it has
    :raises OSError: it cannot be kept now
    """
    begun = logs.deleted_directory(directory)
    if any(logs.names(path) for path in _sources(directory)):
        return False
    with contextlib.suppress(FileNotFoundError), files.locked(begun, 0):
        if logs.names(begun):
            _commit(keeping, begun, now)
        else:
            files.remove_tree(begun)
        return True
    return False


def begun(instances_path: str) -> list[str]:
    """Paths of instance directories whose logs have begun to be gathered."""
    return [logs.instance_directory(os.path.join(instances_path, name))
            for name in files.names(instances_path)
            if _BEGUN.fullmatch(name)]


def _written(directory: str) -> bool:
    """Whether there is a log with bytes in it; True if that is not told."""
    try:
        return any(files.size(os.path.join(directory, name))
                   for name in logs.names(directory)
                   if generation.parse(name) is not None)
    except OSError:
        return True   # what can be renamed is kept


def _describe(directory: str, keeping: Keeping, about: About,
              now: float) -> None:
    when = datetime.datetime.fromtimestamp(now, datetime.UTC)
    uuid = os.path.basename(logs.instance_directory(directory))
    files.replace(os.path.join(directory, _ABOUT), json.dumps({
        'version': 1, 'uuid': uuid, **{
            field: value[:_LONGEST] for field, value in asdict(about).items()},
        'host': keeping.host, 'when': when.isoformat(timespec='seconds'),
        }, indent=1).encode() + b'\n')


def _commit(keeping: Keeping, begun: str, now: float) -> Entry:
    """Rename what was gathered to where it is kept."""
    for path in (os.path.dirname(keeping.directory), keeping.directory):
        files.make_directory(path)
    uuid = os.path.basename(logs.instance_directory(begun))
    size = _size(begun)
    when = int(now * 1000)
    while True:
        path = _path(keeping.directory, uuid, when, keeping.seconds, size)
        try:
            files.rename(begun, path)
        except FileExistsError:
            when += 1
            continue
        files.sync_directory(keeping.directory)
        files.sync_directory(keeping.instances_path)
        return Entry(path, uuid, when, keeping.seconds, size)


def _size(directory: str) -> int:
    """Bytes of what was gathered, as far as the disk tells."""
    total = 0
    for name in logs.names(directory):
        with contextlib.suppress(OSError):
            total += files.size(os.path.join(directory, name)) or 0
    return total


def _path(directory: str, uuid: str, when: int, seconds: int,
          size: int) -> str:
    return os.path.join(directory, f'{uuid}.{when}.{seconds}.{size}')


# Removing

def clean(keeping: Keeping, now: float) -> list[Entry]:
    """Remove what is to go, and what was half removed.

    Another process, or thread, may do so at the same time. What takes too
    long is left to the next time.

    :param now: seconds since the epoch
    :returns: what this host meant to keep for longer
    :raises OSError: some of it stays
    """
    present = int(now * 1000)
    deadline = time.monotonic() + LONGEST_CLEANING
    failed: OSError | None = None
    early = []
    for path in _going(keeping, present):
        if time.monotonic() > deadline:
            break
        try:
            _remove(path)
        except OSError as e:
            failed = failed or e
            continue
        entry = parse(path)
        if (entry is not None and os.path.dirname(path) == keeping.directory
                and present - entry.when < keeping.seconds * 1000):
            early.append(entry)
    if failed is not None:
        raise failed
    return early


def _going(keeping: Keeping, now: int) -> Iterator[str]:
    """Paths of what is to go; what was kept while the clock was ahead is
    given the time that it is now.
    """
    for _, directory in _hosts(keeping.instances_path):
        found = []
        for name in files.names(directory):
            path = os.path.join(directory, name)
            entry = parse(path.removesuffix(_SUFFIX))
            if entry is not None and name.endswith(_SUFFIX):
                yield path
            elif entry is not None:
                found.append(entry)
        if directory != keeping.directory:
            yield from (entry.path for entry in found
                        if now - entry.when >= entry.seconds * 1000)
            continue
        for entry in superfluous(
                found, keeping.seconds, keeping.limit, now):
            yield entry.path
        for entry in found:
            if entry.when > now:
                with contextlib.suppress(OSError):
                    files.rename(entry.path, _path(
                        directory, entry.uuid, now, entry.seconds,
                        entry.size))


def _remove(path: str) -> None:
    gone = f'{path.removesuffix(_SUFFIX)}{_SUFFIX}'
    with contextlib.suppress(FileNotFoundError):
        if path != gone:
            files.rename(path, gone)
        files.remove_tree(gone)
