# SPDX-License-Identifier: Apache-2.0
"""All of a guest's logs are copied for somebody else to read.

Each generation of each port becomes one file, its rotated files put together,
and each history one more; in the order of the manifest they are what the guest
wrote. A generation is copied from files that are open together (chain.py), so
it is exact while virtlogd rotates it. What the file system does not give of it
is NULs in the copy, at its place. Behind a file that cannot be opened, older
ones of its generation are copied one by one, under their own names.
"""

import contextlib
import datetime
import hashlib
import io
import json
import os
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import IO, Protocol

from virtlogd_driver import exception
from virtlogd_driver.console_log.chain import Snapshot, runs, snapshot
from virtlogd_driver.console_log.directory import (
    Directory,
    directory_error,
    open_directory,
)
from virtlogd_driver.console_log.generation import (
    MAX_BACKUPS,
    backup_name,
    generations,
    history_name,
    live_name,
    parse,
)
from virtlogd_driver.console_log.log import failed

#: What is one file's fault.
_UNREADABLE = (exception.LogNotRegular, exception.LogDamaged)

#: Name of the manifest among the files.
MANIFEST = 'manifest.json'

_CHUNK = 1 << 20

#: Bytes that a disk gives, or does not give, together.
_BLOCK = 4096

#: Is told how many more bytes were copied.
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry says what the manifest has of one file."""

    name: str
    #: Serial port, from 0.
    port: int
    #: None: the log's name says nothing of generations.
    generation: int | None
    #: Everything older than that generation, carried from another host.
    history: bool
    #: Bytes.
    size: int
    sha256: str
    #: How many files of virtlogd it was put together from.
    files: int
    #: False: its beginning was rotated away, or may have been, or a backup
    #: within it was deleted, or bytes of it could not be read.
    whole: bool
    #: Offset and size, in bytes, of what could not be read: NULs in the copy.
    unread: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Exported:
    """An export is made, with what could not be read."""

    entries: list[Entry]
    #: Why something is not, or not all, in it, by name.
    unreadable: dict[str, str]


class Source(Protocol):
    """A source gives bytes."""

    def read(self, size: int, /) -> bytes:
        """Give as many bytes as asked for, or all that are left."""


class Target(Protocol):
    """A target stores the files."""

    def write(self, name: str, size: int, source: Source) -> None:
        """Store ``size`` bytes of ``source``."""


class _Copied:
    """A snapshot's bytes are read from the oldest file to the newest.

    What cannot be read is passed over a block at a time, and an eighth of what
    could not be read before it: a disk may take seconds to say so.
    """

    def __init__(self, directory: Directory, name: str, taken: Snapshot,
                 progress: Progress) -> None:
        self._directory = directory
        self._path = f'{directory.path}/{name}'
        self._segments = list(reversed(taken.segments))
        self._offset = 0
        self._progress = progress
        #: Bytes that were given.
        self._given = 0
        self.sha256 = hashlib.sha256()
        self.unread: list[tuple[int, int]] = []
        #: Why, of the first of them.
        self.error: exception.LogError | None = None

    def read(self, size: int) -> bytes:
        """Give as many bytes as asked for, or all that are left."""
        parts = []
        while size > 0 and self._segments:
            part = self._next(size)
            size -= len(part)
            parts.append(part)
        data = b''.join(parts)
        self.sha256.update(data)
        self._progress(len(data))
        return data

    def _next(self, size: int) -> bytes:
        segment = self._segments[0]
        wanted = min(segment.size - self._offset, size)
        data = self._read(segment.fd, wanted)
        if wanted and not data:
            raise exception.LogError(
                f'A log in {self._directory.path} was truncated while it was '
                f'copied: export it again.')
        self._offset += len(data)
        self._given += len(data)
        if self._offset == segment.size:
            self._segments.pop(0)
            self._offset = 0
        return data

    def _read(self, fd: int, wanted: int) -> bytes:
        """Give what there is of so many bytes, or NULs."""
        block = min(wanted, _BLOCK - self._offset % _BLOCK)
        begin, before = self._given, 0
        if self.unread and sum(self.unread[-1]) == begin:
            begin, before = self.unread[-1]
        # Of a longer read not all may be bad.
        for size in [block] if before else [wanted, block]:
            try:
                return self._directory.pread(fd, size, self._offset)
            except OSError as error:
                failure = error
        if before:
            self.unread.pop()
        if self.error is None:
            self.error = failed(self._path, failure)
        size = min(wanted, block + before // 8 // _BLOCK * _BLOCK)
        self.unread.append((begin, before + size))
        return bytes(size)


@dataclass(frozen=True, slots=True)
class _Part:
    name: str
    port: int
    generation: int | None
    history: bool


def _parts(directory: str, port: int, live: str) -> list[_Part]:
    """Give the parts of a log, the oldest first."""
    file = parse(live)
    if file is None:
        return [_Part(live, port, None, False)]
    parts = []
    for number, history in generations(
            os.listdir(directory), file.port).items():
        if number > file.generation:
            continue
        parts.append(_Part(
            live_name(file.port, number), port, number, False))
        if history:
            parts.append(_Part(
                history_name(file.port, number), port, number, True))
            break
    parts.reverse()
    return parts


@dataclass(frozen=True, slots=True)
class _Opened:
    """A part is open."""

    directory: Directory
    #: What there is of it, the oldest first, each with its name.
    found: list[tuple[str, Snapshot]]
    #: Why a file of it is left out, by name.
    left_out: dict[str, str]


@contextlib.contextmanager
def _opened(path: str, part: _Part) -> Iterator[_Opened]:
    """Open a part.

    :raises LogNotFound: its directory is not there
    :raises LogNotRegular: its newest file is no regular file
    :raises LogDamaged: the file system gives no file of it
    """
    with (open_directory(os.path.dirname(path)) as directory,
          contextlib.ExitStack() as closing):
        opened = _Opened(directory, [], {})
        failure: exception.LogDamaged | None = None
        try:
            taken, ended = _chain(directory, part)
        except exception.LogDamaged as error:
            failure = error
            taken, ended = Snapshot(directory, []), True
        closing.callback(taken.close)
        if ended:
            _open_older(opened, part, taken, closing)
        if failure is not None and not (opened.found or opened.left_out):
            raise failure
        if taken.segments:
            opened.found.append((part.name, taken))
        yield opened


def _chain(directory: Directory, part: _Part) -> tuple[Snapshot, bool]:
    """Open a chain as far as it can be: whether one of its files cannot."""
    with _ours(directory, part.name):
        *newer, oldest = runs(
            directory, part.name, live=not part.history,
            max_backups=0 if part.history else None)
    return Snapshot(
        directory, [segment for run in (*newer, oldest)
                    for segment in run.segments],
        complete=oldest.complete, exact=oldest.exact and not newer,
        settled=oldest.settled), oldest.settled and not oldest.exact


def _open_older(opened: _Opened, part: _Part, newer: Snapshot,
                closing: contextlib.ExitStack) -> None:
    """Open files by themselves that are older than what is open of a part.

    As in chain.py none is stepped over while virtlogd renames them: they are
    gone through from the newest on. What is before one that is open already
    has come since.
    """
    seen = {segment.key for segment in newer.segments}
    known = frozenset(seen)
    names = [part.name] + [backup_name(part.name, number) for number in range(
        0 if part.history else MAX_BACKUPS)]
    for name in names:
        try:
            with _ours(opened.directory, name):
                one = snapshot(
                    opened.directory, name, max_backups=0, live=False)
                closing.callback(one.close)
        except _UNREADABLE as error:
            opened.left_out[name] = str(error)
            continue
        one.exact = False
        for segment in one.segments:
            if segment.key in known:
                opened.found.clear()
                opened.left_out.clear()
            elif segment.key not in seen:
                seen.add(segment.key)
                opened.found.insert(0, (name, one))


@contextlib.contextmanager
def _ours(directory: Directory, name: str) -> Iterator[None]:
    """Give an error of the file system as one of ours."""
    try:
        yield
    except OSError as error:
        raise directory_error(error, f'{directory.path}/{name}') from error


def size(logs: Sequence[tuple[int, str]]) -> int:
    """Tell how many bytes, about, an export will be.

    :param logs: port, and path of the live file
    :raises LogError: a log cannot be read
    """
    total = 0
    for port, path in logs:
        for part in _listed(path, port):
            with (contextlib.suppress(*_UNREADABLE, exception.LogNotFound),
                  _opened(path, part) as opened):
                total += sum(taken.size for _, taken in opened.found)
    return total


def _listed(path: str, port: int) -> list[_Part]:
    directory, live = os.path.split(path)
    try:
        return _parts(directory, port, live)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise directory_error(error, directory) from error


def export(logs: Sequence[tuple[int, str]], target: Target,
           about: dict[str, str], progress: Progress) -> Exported:
    """Copy logs, and then their manifest.

    What is no regular file, or cannot be opened, is left out (older files of
    its generation are entries of their own then), and bytes that cannot be
    read are NULs; the manifest has both under "unreadable", with the reason.

    :param logs: port, and path of the live file
    :param about: what else the manifest says
    :raises LogNotFound: there is nothing
    :raises LogError: a log cannot be listed, or nothing of any can be read
    :raises OSError: the target cannot be written
    """
    entries: list[Entry] = []
    unreadable = {}
    for port, path in logs:
        for part in _listed(path, port):
            with contextlib.ExitStack() as closing:
                try:
                    opened = closing.enter_context(_opened(path, part))
                except exception.LogNotFound:
                    continue   # its directory is not there
                except _UNREADABLE as error:
                    unreadable[part.name] = str(error)
                    continue
                unreadable.update(opened.left_out)
                for own, taken in opened.found:
                    source = _Copied(opened.directory, own, taken, progress)
                    name = _unused(own, port,
                                   {entry.name for entry in entries})
                    target.write(name, taken.size, source)
                    if source.error is not None:
                        unreadable[name] = str(source.error)
                    entries.append(Entry(
                        name, port, part.generation, part.history,
                        taken.size, source.sha256.hexdigest(),
                        len(taken.segments),
                        taken.whole and not source.unread, source.unread))
    if sum(entry.size for entry in entries) == sum(
            size for entry in entries for _, size in entry.unread):
        for reason in unreadable.values():
            raise exception.LogError(reason)
    if not entries:
        raise exception.LogNotFound(
            'The guest has no console log yet: ' + (', '.join(
                path for _, path in logs) or 'no <log> in its domain') + '.')
    manifest = json.dumps({
        **about,
        'exported': datetime.datetime.now(datetime.UTC).isoformat(
            timespec='seconds'),
        'files': [asdict(entry) for entry in entries],
        'unreadable': unreadable,
    }, indent=2).encode() + b'\n'
    target.write(MANIFEST, len(manifest), io.BytesIO(manifest))
    return Exported(entries, unreadable)


def _unused(own: str, port: int, used: set[str]) -> str:
    """Give a name that no other file has, of whatever directory."""
    for name in (own, *(
            f'port{port}{more}-{own}'
            for more in ('', *(f'.{n}' for n in range(1, len(used) + 2))))):
        if name not in used and name != MANIFEST:
            return name
    raise AssertionError('there are more names than are used')


class DirectoryTarget:
    """Files are stored in a directory that is there already."""

    def __init__(self, path: str) -> None:
        self._path = path

    def write(self, name: str, size: int, source: Source) -> None:
        fd = os.open(os.path.join(self._path, name),
                     os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(fd, 'wb') as out:
            while data := source.read(_CHUNK):
                out.write(data)


class TarTarget:
    """Files are stored in a compressed tar archive.

    :param out: what it is written to; not closed
    :param prefix: the directory that the files are in
    """

    def __init__(self, out: IO[bytes], prefix: str) -> None:
        self._tar = tarfile.open(fileobj=out, mode='w|gz')  # noqa: SIM115
        self._prefix = prefix

    def write(self, name: str, size: int, source: Source) -> None:
        info = tarfile.TarInfo(f'{self._prefix}/{name}')
        info.size = size
        info.mode = 0o600
        info.mtime = int(time.time())
        self._tar.addfile(info, source)  # type: ignore[arg-type]

    def __enter__(self) -> 'TarTarget':
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write the end of the archive, if all of it was written."""
        if kind is None:
            self._tar.close()
            return
        assert self._tar.fileobj is not None
        with contextlib.suppress(OSError):
            self._tar.fileobj.close()
