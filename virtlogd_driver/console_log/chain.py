# SPDX-License-Identifier: Apache-2.0
"""An exact snapshot is taken of one rotated chain: live file and backups.

virtlogd rotates by renaming, the oldest first (``.1`` to ``.2``, ``.0`` to
``.1``, the live file to ``.0``), then creates the live file anew. So a file's
index only ever grows, one step a rotation, and the order of files never
changes. A reader that opens the names from the newest to the oldest, one index
at a time, can therefore not step over a file: the distance between it and a
file shrinks by one at most with each name. It may meet a name that is missing
for the moment (the file that was there comes next), or a file that it has
already (it was moved meanwhile; dropped by device and inode, which can't be
reused while the file is open).

What can go wrong is at the other end: a file that was created after the scan
began might be met among older ones. It would have had to overtake: the first
file that was opened then has moved by two or more. So after the scan the first
file is looked for under its own name and the next one; if it is at neither,
the scan is done again. (If it is at the next one all is sure, but there may be
more to have: two rotations in the scan can have removed what it began with.)
Contents need no such care: a backup is never written again, and of the live
file no more is read than it had when it was looked at last.

Where a file does not go on from the next one (neighbours.py), or the file
system does not give it, the run ends before it.
"""

import itertools
import logging
import os
import stat

from virtlogd_driver import exception
from virtlogd_driver.console_log import neighbours
from virtlogd_driver.console_log.directory import Directory, Files
from virtlogd_driver.console_log.generation import MAX_BACKUPS, backup_name
from virtlogd_driver.console_log.neighbours import Verdict

LOG = logging.getLogger(__name__)

#: The mode bit of the first file of a chain (:func:`begin`). virtlogd creates
#: each further one as 0600 and renames without changing the mode: as long as
#: the oldest file has it, nothing was rotated away yet. A mode, as it survives
#: renames and NFS; this bit, as it means nothing on a file and no one sets it.
FIRST_OF_CHAIN = stat.S_ISVTX

#: Scans until a shorter answer is given. A scan fails when two rotations end
#: within it, some tens of microseconds.
SCANS = 16

#: Scans that want more than what is sure: the live file, which is missing for
#: 12 us in a rotation, and no rotation within the scan.
PATIENT_SCANS = 8


class Segment:
    """A segment is one open file of a chain, as it was when opened."""

    __slots__ = ('device', 'fd', 'first', 'inode', 'mtime_ns', 'size',
                 'version')

    def __init__(self, fd: int, device: int, inode: int, size: int,
                 mtime_ns: int, *, first: bool) -> None:
        self.fd = fd
        self.device = device
        self.inode = inode
        #: Bytes.
        self.size = size
        #: When it was written last, as of when its size was looked at.
        self.mtime_ns = mtime_ns
        #: Created by :func:`begin`.
        self.first = first
        #: Directory.version of it, once that was asked for.
        self.version: int | None = None

    @property
    def key(self) -> tuple[int, int]:
        """Give what no other file has as long as this one is open."""
        return self.device, self.inode

    def look_at(self, size: int, mtime_ns: int) -> None:
        """Bring it up to date."""
        self.size = size
        self.mtime_ns = mtime_ns

    def is_file(self, status: os.stat_result) -> bool:
        return (self.inode == status.st_ino
                and self.device == status.st_dev)


class Snapshot:
    """A snapshot is open files, newest first, that are one run of bytes."""

    __slots__ = ('complete', 'exact', 'failure', 'files', 'segments',
                 'settled')

    def __init__(
            self, files: Files, segments: list[Segment], *,
            complete: bool = True, exact: bool = True,
            settled: bool = True, failure: str | None = None) -> None:
        #: The system calls on the segments.
        self.files = files
        self.segments = segments
        #: All names were looked at, not only as many as were wanted.
        self.complete = complete
        #: False: cut short, there may be older bytes that belong to it.
        self.exact = exact
        #: False: cut short because the files moved too fast; nor is it exact.
        self.settled = settled
        #: What the file system says of the file before these; None: nothing.
        self.failure = failure

    @property
    def whole(self) -> bool:
        """Tell whether nothing was rotated away."""
        return (self.complete and self.exact
                and bool(self.segments) and self.segments[-1].first)

    @property
    def size(self) -> int:
        """Give bytes in all of its files."""
        return sum(segment.size for segment in self.segments)

    def close(self) -> None:
        for segment in self.segments:
            self.files.close(segment.fd)
        self.segments = []


def begin(path: str) -> None:
    """Create the first, empty file of a chain before virtlogd opens it.

    With it a reader can tell that the chain still has its beginning, so that
    it continues the generation before it without a gap.

    :raises FileExistsError: the chain has begun already
    """
    os.close(os.open(
        path,
        os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
        0o600 | FIRST_OF_CHAIN))


def snapshot(
        directory: Directory, name: str, *,
        limit: int | None = None,
        until: tuple[int, int] | None = None,
        max_backups: int | None = None,
        live: bool = True) -> Snapshot:
    """Open the files of a chain as far as they are surely one run of bytes.

    None of them if there is no such chain.

    :param name: name of the live file
    :param limit: bytes that are enough; None: all there are
    :param until: device and inode of the oldest file that is wanted
    :param max_backups: virtlogd's, where known: what is beyond is no part of
        the chain. Unknown, a backup has to prove that it is one
    :param live: the guest may be writing, so a missing live file is waited
        for (4 ms at most)
    :returns: the caller closes it
    :raises LogNotRegular: the newest file is no regular file
    :raises LogDamaged: the file system does not give the newest file
    :raises LogRefused: a file may not be read
    """
    [found] = _scanned(
        directory, name, limit, until, max_backups, live=live, split=False)
    return found


def runs(
        directory: Directory, name: str, *,
        until: tuple[int, int] | None = None,
        max_backups: int | None = None,
        live: bool = True) -> list[Snapshot]:
    """Open all files of a chain: runs of bytes, the newest first.

    Between two of them bytes may be missing. As :func:`snapshot` otherwise.
    """
    return _scanned(
        directory, name, None, until, max_backups, live=live, split=True)


def _scanned(
        directory: Directory, name: str, limit: int | None,
        until: tuple[int, int] | None, max_backups: int | None, *,
        live: bool, split: bool) -> list[Snapshot]:
    bounded = max_backups is not None
    backups = (
        MAX_BACKUPS if max_backups is None
        else min(max(max_backups, 0), MAX_BACKUPS))
    for scan in range(SCANS - 1):
        patient = scan < PATIENT_SCANS
        found = _scan(
            directory, name, backups, limit, until, bounded=bounded,
            split=split, wait=live and patient, patient=patient)
        if found is not None:
            return found
        directory.pause(scan)
    found = _scan(directory, name, backups, limit, until, bounded=bounded,
                  split=split, cautious=True)
    assert found is not None
    return found


def _scan(
        directory: Directory, live: str, backups: int,
        limit: int | None, until: tuple[int, int] | None,
        *, bounded: bool, split: bool, wait: bool = False,
        patient: bool = False, cautious: bool = False
) -> list[Snapshot] | None:
    """Open the names once, from the newest to the oldest.

    :param bounded: max_backups is known
    :param split: go on with another run where one ends
    :param wait: None if the live file is missing
    :param patient: None if a rotation ended within the scan, or may be under
        way
    :param cautious: look after each file whether the run is still sure, and
        end it where it isn't, instead of None at the end
    """
    segments: list[Segment] = []
    complete = exact = settled = True
    failure: str | None = None
    again = False
    # Where runs begin.
    borders = [0]
    seen: dict[tuple[int, int], Segment] = {}
    start = found = 0
    total = 0
    renamed_ns = filled_ns = 0
    newest: os.stat_result | None = None
    try:
        index = -1
        while index < backups:
            index += 1
            # After a first file that was missing so will be most of the rest.
            if index > 1 and len(segments) < index:
                index = directory.next_backup(live, index - 1, backups) + 1
                if index > backups:
                    break
            name = _name(live, index)
            try:
                segment, status = _open(directory, name)
            except FileNotFoundError:
                if wait and index == 0:
                    return None
                continue
            except (exception.LogNotRegular, exception.LogDamaged) as error:
                if not segments:
                    raise
                LOG.debug('The log ends there: %s', error)
                exact = False
                failure = damage(error)
                break
            known = seen.setdefault(segment.key, segment)
            if known is not segment:
                directory.close(segment.fd)
                again = True
                # It was the live file, and has been written to its end.
                total += segment.size - known.size
                known.look_at(segment.size, segment.mtime_ns)
                newest, found = status, index
                if limit is not None and total >= limit:
                    complete = False
                    break
                continue
            segments.append(segment)
            if len(segments) == 1:
                start = index
            elif cautious and _moved(
                    directory, live, start, segments[0]) > 1:
                directory.close(segments.pop().fd)
                LOG.debug(
                    '%s/%s is rotated faster than it can be read: only its '
                    'newest %d files are', directory.path, live,
                    len(segments))
                exact = settled = False
                break
            if newest is not None:
                verdict = neighbours.verdict(
                    _times(directory, segment, status),
                    _times(directory, segments[-2], newest),
                    renamed=renamed_ns, filled=filled_ns,
                    missing=index - found > 1, bounded=bounded)
                if verdict is Verdict.LOOK_AGAIN and patient:
                    return None
                if verdict is not Verdict.YES:
                    LOG.debug(
                        '%s/%s may not be what was written just before the '
                        'newer files: a backup was deleted, or it is left of '
                        'a higher max_backups', directory.path, name)
                    if split:
                        borders.append(len(segments) - 1)
                    else:
                        exact = False
                        # From what is empty nothing has to go on.
                        if total or cautious:
                            directory.close(segments.pop().fd)
                            break
                    renamed_ns = filled_ns = 0
            if index > 0:
                renamed_ns = max(renamed_ns, status.st_ctime_ns)
                filled_ns = max(filled_ns, status.st_mtime_ns)
            newest, found = status, index
            total += segment.size
            if until == segment.key or (
                    limit is not None and total >= limit):
                complete = False
                break
        if not cautious and (len(segments) > 1 or again) and _moved(
                directory, live, start, segments[0]
        ) > (0 if patient and complete else 1):
            return None
        found_runs = [
            Snapshot(directory, segments[begin:end], exact=False)
            for begin, end in itertools.pairwise(borders)]
        found_runs.append(Snapshot(
            directory, segments[borders[-1]:],
            complete=complete, exact=exact, settled=settled,
            failure=failure))
        segments = []
        return found_runs
    finally:
        for segment in segments:
            directory.close(segment.fd)


def damage(error: exception.LogError) -> str | None:
    """Give what a file system says that may give the file again; or None."""
    return str(error) if isinstance(error, exception.LogDamaged) else None


def _times(directory: Directory, segment: Segment,
           status: os.stat_result) -> neighbours.Times:
    return neighbours.Times(
        size=status.st_size, changed=status.st_ctime_ns,
        written=status.st_mtime_ns, born=directory.born(segment.fd))


def _name(live: str, index: int) -> str:
    return backup_name(live, index - 1) if index else live


def _open(
        directory: Directory, name: str) -> tuple[Segment, os.stat_result]:
    fd = directory.open(name)
    try:
        status = directory.fstat(fd)
        directory.check(status, name)
    except BaseException:
        directory.close(fd)
        raise
    return Segment(
        fd, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns,
        first=bool(status.st_mode & FIRST_OF_CHAIN)), status


def _moved(
        directory: Directory, live: str, start: int, first: Segment) -> int:
    """Tell by how many names the first file has moved; 2 stands for any more.

    It is also brought up to date: the more of it there is the less is missed
    of what was removed at the other end meanwhile.
    """
    for moved in (0, 1):
        try:
            status = directory.stat(_name(live, start + moved))
        except FileNotFoundError:
            continue
        if first.is_file(status):
            if status.st_size >= first.size:
                first.look_at(status.st_size, status.st_mtime_ns)
            return moved
    return 2
