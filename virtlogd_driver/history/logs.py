# SPDX-License-Identifier: Apache-2.0
"""All files of a guest's logs in a directory move by renames alone.

Where nova deletes the instance directory, or takes it away, the logs go aside
or come along: on one file system each file is renamed, none is read. They lie

====================  ====================================================
directory             when
====================  ====================================================
``<uuid>``            always, but for:
``<uuid>_console``    nova deletes the directory (a rebuild); or they are
                      older than a log of the same name in ``<uuid>`` which
                      another driver has begun
``<uuid>_resize``     nova's own name for the directory of a guest that is
                      to be resized or moved, until that is confirmed
``<uuid>_deleted``    nova deletes the instance, and its logs are to be kept
                      (deleted.py)
====================  ====================================================

A crash leaves some files in one directory and the rest in another.
:func:`recover` puts them together, file by file, at whatever comes next.
"""

import contextlib
import errno
import itertools
import os
from collections.abc import Collection, Iterable, Mapping

from virtlogd_driver.console_log import chain, generation
from virtlogd_driver.history import boot, files

#: By what departures it is known here that their histories have come.
RECEIVED = 'console.received'

#: What is staged for a copy, and comes with it.
MOVING = 'console.moving'

_BESIDES = (boot.FILE, RECEIVED)

#: Characters of why something was refused.
_LONGEST = 200


def aside_directory(directory: str) -> str:
    """Path of the directory beside an instance directory for its logs."""
    return f'{directory}_console'


def resized(directory: str) -> str:
    """nova's name for the directory of a guest that is being resized."""
    return f'{directory}_resize'


def deleted_directory(directory: str) -> str:
    """Path of the directory for what is to outlive a deleted instance."""
    return f'{directory}_deleted'


def beside(directory: str) -> list[str]:
    """Paths of the directories that older logs may be in, the newest first.

    :param directory: path of the instance directory
    """
    return [resized(directory), aside_directory(directory),
            deleted_directory(directory)]


def instance_directory(directory: str) -> str:
    """Path of the instance directory that one of these belongs to."""
    for suffix in ('_console', '_resize', '_deleted'):
        directory = directory.removesuffix(suffix)
    return directory


def newest(directory: str) -> list[str]:
    """Names of the logs that were written last, one for each serial port."""
    found = files.names(directory)
    return [generation.live_name(port, generation.newest(found, port) or 0)
            for port in ports(directory)]


def names(directory: str) -> list[str]:
    """Names of a guest's logs, and of what belongs to them, in a directory.

    In the order in which they may be renamed.
    """
    found = files.names(directory)
    return [name for name in found if generation.parse(name) is not None] + [
        name for name in _BESIDES if name in found]


def ports(directory: str) -> list[int]:
    """Serial ports that there are logs of, the first one first."""
    return _ports(files.names(directory))


def _ports(found: Iterable[str]) -> list[int]:
    return sorted({file.port for file in map(generation.parse, found)
                   if file is not None})


def written(directory: str) -> list[str]:
    """Names of a guest's logs, but for an empty one that nova makes."""
    found = [name for name in files.names(directory)
             if generation.parse(name) is not None]
    return [name for name in found if not (
        len(found) > 1 and _is_novas(os.path.join(directory, name)))]


def generations(directory: str, port: int) -> list[int]:
    """The generations of a port that there are files of, but histories."""
    return sorted({
        file.generation for file in map(generation.parse, written(directory))
        if file is not None and file.port == port and not file.history})


def move(here: str, there: str,
         in_use: Mapping[int, int] | None = None) -> bool:
    """Rename a guest's logs from one directory to another.

    Nothing is replaced: what :func:`_joins` does not allow stays.

    :param in_use: by serial port, the generation that stays, as another host
        writes it here
    :returns: whether all were
    :raises OSError: some have not been renamed
    """
    return _join(here, there, idle=False, in_use=in_use)


def gather(directories: Iterable[str], there: str) -> None:
    """Rename all logs of a guest that is gone to one directory.

    To do so again, after it was cut off, is to go on. What cannot be renamed
    holds up nothing else.

    :param directories: their paths, that of the newest logs first
    :raises OSError: some have not been renamed
    """
    failed: OSError | None = None
    for here in directories:
        try:
            _join(here, there, idle=True)
        except OSError as e:
            failed = failed or e
    if failed is not None:
        raise failed


def recover(directory: str, *, idle: bool,
            log_names: Collection[str] | None = None) -> bool:
    """Put together what lies beside an instance directory, once it is there.

    :param directory: path of the instance directory
    :param idle: no guest is running that writes there
    :param log_names: names of the logs that its domain has; None: not known
    :returns: whether all of it is together
    :raises OSError: some is not
    """
    if not files.is_directory(directory):
        return True
    whole = True
    present = list(filter(files.is_directory, beside(directory)))
    for older in present:
        whole = _join(older, directory, idle=idle,
                      log_names=log_names) and whole
    kept = deleted_directory(directory)
    if whole and kept in present:
        # The guest was not deleted in the end.
        files.remove_tree(kept)
    older = aside_directory(directory)
    if whole and older in present:
        staged = os.path.join(older, MOVING)
        there = os.path.join(directory, MOVING)
        if files.is_directory(staged) and not files.exists(there):
            # Of an earlier version of this driver, which copied.
            files.rename(staged, there)
            files.sync_directory(directory)
        files.remove_tree(older)
    return whole


def set_aside(directory: str) -> None:
    """Rename a guest's logs to where nova does not delete them.

    The directory as a whole, where there is no room for another.

    :raises OSError: nova deletes them
    """
    there = aside_directory(directory)
    try:
        files.make_directory(there)
        move(directory, there)
    except OSError:
        if files.is_directory(there):
            if names(there) and names(directory):
                # It had room for some: they get their old names again.
                move(there, directory)
            if names(there) or not names(directory):
                raise
            files.remove_tree(there)
        files.rename(directory, there)
        keep_logs_alone(there)
    files.sync_directory(os.path.dirname(there))


def keep_logs_alone(directory: str) -> None:
    """Remove what nova would have deleted, where a whole directory is."""
    staying = {*names(directory), MOVING}
    for name in files.names(directory):
        if name not in staying:
            files.remove_tree(os.path.join(directory, name))


def _join(older: str, newer: str, *, idle: bool,
          log_names: Collection[str] | None = None,
          in_use: Mapping[int, int] | None = None) -> bool:
    """Rename what is older to where the newer is.

    What cannot be renamed is tried once more after the others.

    :param log_names: as of recover
    :param in_use: as of move
    :returns: whether all was
    """
    def moving() -> list[str]:
        return [name for name in names(older) if (
            file := generation.parse(name)) is None
            or file.generation != (in_use or {}).get(file.port)]

    if not names(older):
        return True
    for name in set(moving()).intersection(names(newer)):
        here, there = os.path.join(older, name), os.path.join(newer, name)
        unwritten = idle or (log_names is not None and name not in log_names)
        # Made by nova, or begun for a guest that then had no log, on one host
        # or the other.
        if unwritten and _is_novas(there):
            os.unlink(there)
        elif is_as_begun(here):
            os.unlink(here)
        elif unwritten and is_as_begun(there):
            os.unlink(there)
    staying = {port for port in ports(older)
               if not _joins(older, newer, port, idle=idle)}
    failed: OSError | None = None
    for _ in range(2):
        failed = None
        for name in moving():
            try:
                _join_file(older, newer, name, staying)
            except OSError as e:
                failed = failed or e
        if failed is None:
            break
    if failed is not None:
        raise failed
    files.sync_directory(newer)
    files.sync_directory(older)
    return not staying


def _join_file(older: str, newer: str, name: str,
               staying: set[int]) -> None:
    here, there = os.path.join(older, name), os.path.join(newer, name)
    file = generation.parse(name)
    if file is not None:
        if file.port not in staying:
            files.rename(here, there)
    elif not files.exists(there):
        files.rename(here, there)
    elif not staying:
        if name == boot.FILE:
            boot.merge(older, newer)
        else:
            note_received(newer, received(older))
        os.unlink(here)


def _joins(older: str, newer: str, port: int, *, idle: bool) -> bool:
    """Whether the logs of a port can be renamed to where newer ones are.

    A log there of the same name is another driver's. It becomes the
    generation after the older ones, as soon as nobody writes it.
    """
    half = _half_renumbered(older, newer, port)
    shared = set(files.names(older)) & set(files.names(newer))
    if half is None and port not in _ports(shared):
        return True
    if not idle:
        return False
    if half is not None:
        _renumber(newer, port, *half)
        files.sync_directory(newer)
        return _joins(older, newer, port, idle=idle)
    following = max(generation.generations(files.names(older), port)) + 1
    present = sorted(generation.generations(written(newer), port))
    raised: dict[int, int] = {}
    match [number for number in present if number < following]:
        case [old] if _is_one(newer, port, old, following):
            raised[old] = following
        case _:
            for number in present:
                if number < following:
                    raised[number] = following
                following = max(number, following) + 1
    for old, new in reversed(raised.items()):
        _renumber(newer, port, old, new)
    files.sync_directory(newer)
    return True


def _half_renumbered(older: str, newer: str,
                     port: int) -> tuple[int, int] | None:
    """The generation that a crash has half renumbered, and its new number.

    The file of the name that was in the way has another one already. The rest
    is no part of the older generation: it was written later. Nor was what has
    the new number begun for a guest here.
    """
    here, there = files.names(older), files.names(newer)
    for old, new in itertools.pairwise(
            sorted(generation.generations(there, port))):
        before = generation.files_of(here, port, old)
        rest = generation.files_of(there, port, old)
        if (before and _is_one(newer, port, old, new)
                and _written(newer, rest[0]) >= _written(older, before[-1])
                and not is_first(os.path.join(
                    newer, generation.files_of(there, port, new)[0]))):
            return old, new
    return None


def _written(directory: str, name: str) -> int:
    path = os.path.join(directory, name)
    status = files.look(path)
    if status is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return status.st_mtime_ns


def _is_one(directory: str, port: int, old: int, new: int) -> bool:
    """Whether a generation can be given a number, or a crash has left half.

    The rest goes before what has that number, and under other names.
    """
    found = files.names(directory)
    rest = [_renumbered(name, new)
            for name in generation.files_of(found, port, old)]
    there = generation.files_of(found, port, new)
    return (set(rest).isdisjoint(there)
            and generation.files_of([*rest, *there], port, new) == [
                *rest, *there])


def _renumbered(name: str, number: int) -> str:
    """The name of a log's file in another generation."""
    file = generation.parse(name)
    assert file is not None
    return str(generation.FileName(
        file.port, number, file.backup, file.history))


def _renumber(directory: str, port: int, old: int, new: int) -> None:
    """Make a later generation of a chain that nobody writes.

    At each point what is older has the lower number.
    """
    for name in reversed(generation.files_of(
            files.names(directory), port, old)):
        files.rename(os.path.join(directory, name),
                     os.path.join(directory, _renumbered(name, new)))


def _is_novas(live: str) -> bool:
    """Whether it is the empty file that nova makes for each guest that comes.

    Whatever the guest's log is called (_ensure_console_log_for_instance). One
    that virtlogd has just rotated is empty, too, and has a backup.
    """
    return (os.path.basename(live) == generation.live_name(0, 0)
            and files.size(live) == 0 and not is_first(live)
            and not files.exists(generation.backup_name(live, 0)))


def is_as_begun(live: str) -> bool:
    """Nothing was ever written to a log, nor rotated away."""
    status = files.look(live)
    return (status is not None and status.st_size == 0
            and bool(status.st_mode & chain.FIRST_OF_CHAIN))


def live_generation(directory: str, port: int) -> int:
    """The generation that the next start of a guest here appends to.

    A later one than any that could not be brought back yet (recover).
    """
    here = generation.newest(files.names(directory), port)
    older = generation.newest([name for path in beside(directory)
                               for name in files.names(path)], port)
    if older is not None and (here is None or here <= older):
        return older + 1
    return here or 0


def next_generation(directory: str, port: int) -> int:
    """The generation that a guest which comes to a directory begins.

    One that was begun for a migration which has failed is taken again.
    """
    newest = generation.newest(files.names(directory), port) or 0
    if newest and is_as_begun(os.path.join(
            directory, generation.live_name(port, newest))):
        return newest
    return newest + 1


def next_log(directory: str, port: int, here: str | None,
             shared: bool) -> str:
    """Path of a port's log on the destination of a live migration.

    A directory that is new there starts with generation 1: the destination
    prepares the file and cannot know of another. In a shared one it has just
    begun the next, or there is one that nobody writes. It does not know which
    log the guest writes here: where that is still empty it takes it for one
    of those. So what goes on there is never what is written here, and it is
    begun here where it has not been.

    :param directory: path of the instance directory, on both hosts
    :param here: path of its log here, if it has one
    :param shared: it is one directory, on storage that both share
    """
    if here is not None:
        directory = os.path.dirname(here)
    number = 1
    if shared:
        number = next_generation(directory, port)
        file = None if here is None else generation.parse(
            os.path.basename(here))
        if file is not None:
            number = max(number, file.generation + 1)
    there = os.path.join(directory, generation.live_name(port, number))
    if shared:
        # Less is joined without, and the guest moves all the same.
        with contextlib.suppress(OSError):
            chain.begin(there)
    return there


def begin_next(directory: str) -> None:
    """Let a guest go on in new logs: another host may still write these.

    Also where nothing was written yet: that host has the file open.

    :raises OSError: one cannot be made
    """
    found = files.names(directory)
    for port in ports(directory):
        newest = generation.newest(found, port) or 0
        chain.begin(os.path.join(
            directory, generation.live_name(port, newest + 1)))


def remove_begun(directory: str, in_use: dict[int, int]) -> None:
    """Remove the empty logs that a refused migration left behind.

    :param in_use: by serial port, the generation that the guest writes
    """
    for name in names(directory):
        file = generation.parse(name)
        path = os.path.join(directory, name)
        if (file is not None and file.generation > in_use.get(file.port, 0)
                and is_as_begun(path)):
            os.unlink(path)


def remove_all(directory: str) -> None:
    """Remove the logs of a guest that has gone, where its directory stays."""
    for name in [*names(directory), MOVING]:
        files.remove_tree(os.path.join(directory, name))


def cut(directory: str, limit: int) -> None:
    """Remove what is older than a bound, file by file, the oldest first.

    The newest generation of each port is virtlogd's to bound. A file that has
    a byte within the bound stays.

    :param limit: bytes of what is older than that, for each serial port
    """
    found = files.names(directory)
    for port in ports(directory):
        present = generation.generations(found, port)
        newest = max(present)
        # It is there only once the guest has one.
        if generation.live_name(port, newest) not in found:
            continue
        older = [name for number in sorted(present)
                 for name in generation.files_of(found, port, number)
                 if number < newest or name.endswith('.history')]
        counted = 0
        for name in reversed(older):
            path = os.path.join(directory, name)
            if counted >= limit:
                os.unlink(path)
                continue
            counted += files.size(path) or 0


def in_use(log_names: Iterable[str]) -> dict[int, int]:
    """Of logs that a domain names: by serial port, the generation."""
    return {file.port: file.generation for file in map(
        generation.parse, log_names) if file is not None}


def received(directory: str) -> dict[str, str]:
    """What has come here: by departure, '' or why it was refused.

    :raises OSError: it cannot be read just now
    """
    try:
        lines = files.read(os.path.join(directory, RECEIVED), 1 << 16)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    found = {}
    for line in lines.decode(errors='replace').splitlines():
        departure, _, reason = line.partition(' ')
        found[departure] = printable(reason, _LONGEST)
    return found


def printable(text: str, most: int) -> str:
    """What another host says, as it may be logged: no terminal obeys it.

    :param most: characters
    """
    return ''.join(c if c.isprintable() else '?' for c in text[:most])


def note_received(directory: str, departures: dict[str, str]) -> None:
    """Let the hosts they came from know: it is on the disk."""
    known = received(directory) | departures
    newest = list(known.items())[-100:]
    files.replace(os.path.join(directory, RECEIVED), ''.join(
        f'{departure} {reason[:_LONGEST]}'.rstrip() + '\n'
        for departure, reason in newest).encode())


def is_first(path: str) -> bool:
    """Whether a file is the first one of its chain."""
    status = files.look(path)
    return (status is not None
            and bool(status.st_mode & chain.FIRST_OF_CHAIN))
