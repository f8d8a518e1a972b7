# SPDX-License-Identifier: Apache-2.0
import contextlib
import errno
import gc
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit import descriptors
from virtlogd_driver import exception
from virtlogd_driver.console_log import chain, export, files, generation
from virtlogd_driver.console_log.directory import Directory
from virtlogd_driver.console_log.export import DirectoryTarget, TarTarget

ABOUT = {'guest': 'guest1'}


def nothing(count: int) -> None:
    pass


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """A guest that has moved twice; its first history was not carried."""
    directory = tmp_path / 'instance'
    directory.mkdir()
    for name, data in {
            'console.log.0': b'A', 'console.log': b'B',
            'console.g1.log.1': b'C', 'console.g1.log.0': b'D',
            'console.g1.log': b'E',
            'console.g2.log': b'F',
            'console.port1.g2.history': b'older',
            'console.port1.g2.log': b'newer',
            'disk': b'not a log'}.items():
        (directory / name).write_bytes(data)
    return directory


def test_what_is_exported(logs: Path, tmp_path: Path) -> None:
    paths = [(0, str(logs / 'console.g2.log')),
             (1, str(logs / 'console.port1.g2.log'))]
    out = tmp_path / 'out'
    out.mkdir()
    done: list[int] = []
    entries = export.export(paths, DirectoryTarget(str(out)), ABOUT,
                            done.append).entries
    manifest = json.loads((out / export.MANIFEST).read_text())
    assert manifest['guest'] == 'guest1'
    assert [(e['name'], e['port'], e['generation'], e['history'],
             e['files']) for e in manifest['files']] == [
        ('console.log', 0, 0, False, 2),
        ('console.g1.log', 0, 1, False, 3),
        ('console.g2.log', 0, 2, False, 1),
        ('console.port1.g2.history', 1, 2, True, 1),
        ('console.port1.g2.log', 1, 2, False, 1)]
    joined = b''
    for entry in entries:
        data = (out / entry.name).read_bytes()
        assert len(data) == entry.size
        assert hashlib.sha256(data).hexdigest() == entry.sha256
        joined += data
    assert joined == b'ABCDEFoldernewer'
    assert sum(done) == len(joined) == export.size(paths)
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o600}


def test_what_was_before_another_driver(logs: Path, tmp_path: Path) -> None:
    (logs / 'console.history').write_bytes(b'before')
    out = tmp_path / 'out'
    out.mkdir()
    export.export([(0, str(logs / 'console.g1.log'))],
                  DirectoryTarget(str(out)), ABOUT, nothing)
    manifest = json.loads((out / export.MANIFEST).read_text())
    assert [(e['name'], e['generation']) for e in manifest['files']] == [
        ('console.history', 0), ('console.log', 0), ('console.g1.log', 1)]
    assert (out / 'console.history').read_bytes() == b'before'


def test_a_whole_chain_is_called_whole(tmp_path: Path) -> None:
    path = tmp_path / 'console.log'
    chain.begin(str(path))
    with TarTarget(io.BytesIO(), 'x') as target:
        [entry] = export.export(
            [(0, str(path))], target, ABOUT, nothing).entries
    assert entry.whole
    assert entry.size == 0


@pytest.mark.parametrize('whole', [False, True])
def test_a_history_is_called_whole_where_its_source_said_so(
        tmp_path: Path, whole: bool) -> None:
    """Not one that was cut to max_history_bytes."""
    history = tmp_path / 'console.g1.history'
    history.write_bytes(b'before')
    history.chmod(0o600 | (chain.FIRST_OF_CHAIN if whole else 0))
    with TarTarget(io.BytesIO(), 'x') as target:
        exported = export.export([(0, str(tmp_path / 'console.g1.log'))],
                                 target, ABOUT, nothing)
    assert [entry.whole for entry in exported.entries] == [whole]


def test_an_archive(logs: Path) -> None:
    out = io.BytesIO()
    with TarTarget(out, 'console-guest1') as target:
        export.export([(0, str(logs / 'console.g2.log'))], target, ABOUT,
                      nothing)
    out.seek(0)
    with tarfile.open(fileobj=out) as tar:
        member = tar.extractfile('console-guest1/console.g1.log')
        assert member is not None
        assert member.read() == b'CDE'


class Full(io.BytesIO):
    """It takes some bytes, and no more."""

    def write(self, data: Any) -> int:
        if self.tell() > 1000:
            raise OSError(errno.ENOSPC, 'No space left on device')
        return super().write(data)


@pytest.mark.parametrize('error', [exception.LogError('gone'), None])
def test_an_archive_that_is_not_whole_has_no_end(
        logs: Path, error: exception.LogError | None) -> None:
    """Nothing is left open, whatever has failed."""
    out = io.BytesIO() if error else Full()

    def copied(count: int) -> None:
        if error is not None:
            raise error

    (logs / 'console.g2.log').write_bytes(os.urandom(1 << 20))
    with pytest.raises((exception.LogError, OSError)), TarTarget(
            out, 'console-guest1') as target:
        export.export([(0, str(logs / 'console.g2.log'))], target, ABOUT,
                      copied)
    gc.collect()
    out.seek(0)
    with pytest.raises((tarfile.ReadError, EOFError)), tarfile.open(
            fileobj=out) as tar:
        tar.extractall(logs / 'out', filter='data')


def test_a_log_of_any_name(tmp_path: Path) -> None:
    (tmp_path / 'vm-serial0.log.0').write_bytes(b'1')
    (tmp_path / 'vm-serial0.log').write_bytes(b'2')
    with TarTarget(io.BytesIO(), 'x') as target:
        [entry] = export.export([(0, str(tmp_path / 'vm-serial0.log'))],
                                target, ABOUT, nothing).entries
    assert (entry.name, entry.generation, entry.size) == (
        'vm-serial0.log', None, 2)


@pytest.mark.parametrize('kind', [
    os.mkdir, os.mkfifo, lambda path: path.symlink_to('/etc/passwd')])
def test_what_is_none_is_left_out(
        kind: Callable[[Path], None], logs: Path, tmp_path: Path) -> None:
    (logs / 'console.g1.history').unlink(missing_ok=True)
    kind(logs / 'console.g1.history')
    out = tmp_path / 'out'
    out.mkdir()
    paths = [(0, str(logs / 'console.g2.log'))]
    exported = export.export(paths, DirectoryTarget(str(out)), ABOUT, nothing)
    assert [entry.name for entry in exported.entries] == [
        'console.g1.log', 'console.g2.log']
    manifest = json.loads((out / export.MANIFEST).read_text())
    assert manifest['unreadable'] == exported.unreadable
    assert 'not a regular file' in exported.unreadable['console.g1.history']
    assert sum(entry.size for entry in exported.entries) == export.size(paths)


def test_a_log_that_fails_within_a_copy_is_said_to_be_what_fails(
        logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not the target that cannot be written."""
    monkeypatch.setattr(Directory, 'pread', fails(errno.EIO))
    with pytest.raises(exception.LogError, match=(
            f'^{logs}/console.log cannot be read: Input/output error')):
        export.export([(0, str(logs / 'console.g2.log'))],
                      DirectoryTarget(str(tmp_path)), ABOUT, nothing)


class Disk:
    """It does not give some bytes of a file, as Linux says it: what is before
    them is a short answer.
    """

    def __init__(self, path: Path, *bad: range) -> None:
        self._inode = path.stat().st_ino
        self._bad = bad
        #: How often it was asked for what it does not give.
        self.failed = 0

    def pread(self, directory: Directory, fd: int, size: int,
              offset: int) -> bytes:
        for bad in self._bad if os.fstat(fd).st_ino == self._inode else ():
            if offset in bad:
                self.failed += 1
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            if offset < bad.start < offset + size:
                size = bad.start - offset
        return os.pread(fd, size, offset)

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def pread(*arguments: Any) -> bytes:
            return self.pread(*arguments)
        monkeypatch.setattr(Directory, 'pread', pread)


def test_a_bad_sector_costs_no_more_than_itself(
        logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All else is there, at its place, of this file and of the others."""
    data = os.urandom(3_000_001)
    (logs / 'console.g1.log.0').write_bytes(data)
    Disk(logs / 'console.g1.log.0', range(8192, 12288),
         range(1 << 20, (1 << 20) + 8192),
         range(2_998_272, 3_000_001)).use(monkeypatch)
    out = tmp_path / 'out'
    out.mkdir()
    exported = export.export([(0, str(logs / 'console.g2.log'))],
                             DirectoryTarget(str(out)), ABOUT, nothing)
    entry = exported.entries[1]
    # There is one byte in a file that is older.
    assert entry.unread == [(8193, 4096), ((1 << 20) + 1, 8192),
                            (2_998_273, 1729)]
    copy = bytearray(b'C' + data + b'E')
    for offset, size in entry.unread:
        copy[offset:offset + size] = bytes(size)
    assert (out / 'console.g1.log').read_bytes() == copy
    assert entry.sha256 == hashlib.sha256(copy).hexdigest()
    assert (out / 'console.log').read_bytes() == b'AB'
    assert (out / 'console.g2.log').read_bytes() == b'F'
    manifest = json.loads((out / export.MANIFEST).read_text())
    assert manifest['files'][1]['unread'] == [
        list(part) for part in entry.unread]
    assert not manifest['files'][1]['whole']
    assert manifest['unreadable'] == {'console.g1.log': (
        f'{logs}/console.g1.log cannot be read: Input/output error. See to '
        f'the file system that it is on.')}


def test_a_disk_that_gives_nothing_is_not_asked_for_each_block(
        logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may take seconds to say so."""
    size = 100 << 20
    os.truncate(logs / 'console.g1.log', size)
    disk = Disk(logs / 'console.g1.log', range(size))
    disk.use(monkeypatch)
    exported = export.export([(0, str(logs / 'console.g2.log'))],
                             DirectoryTarget(str(tmp_path)), ABOUT, nothing)
    assert exported.entries[1].unread == [(2, size)]
    assert disk.failed < 300


def test_a_log_that_fails_as_it_is_opened_is_left_out(
        logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS opens a file that it does not have any more."""
    monkeypatch.setattr(Directory, 'fstat', fails(errno.ESTALE))
    paths = [(0, str(logs / 'console.log'))]
    assert export.size(paths) == 0
    with pytest.raises(exception.LogError, match=(
            f'^{logs}/console.log cannot be read: Stale file handle')):
        export.export(paths, DirectoryTarget(str(tmp_path)), ABOUT, nothing)


def fail_to_open(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    open_ = os.open

    def opening(path: str, *arguments: int, **named: int) -> int:
        if path in names:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return open_(path, *arguments, **named)
    monkeypatch.setattr(os, 'open', opening)


def exported_of(path: Path, out: Path) -> tuple[
        list[tuple[str, bytes, int, bool]], dict[str, str]]:
    """What an export has, and why not all."""
    out.mkdir()
    exported = export.export(
        [(0, str(path))], DirectoryTarget(str(out)), ABOUT, nothing)
    manifest = json.loads((out / export.MANIFEST).read_text())
    assert manifest['unreadable'] == exported.unreadable
    assert sum(entry.size for entry in exported.entries) == export.size(
        [(0, str(path))])
    return [(entry.name, (out / entry.name).read_bytes(), entry.files,
             entry.whole) for entry in exported.entries], exported.unreadable


def chain_of(directory: Path, count: int) -> Path:
    """A whole chain of so many backups, and its live file."""
    path = directory / 'console.log'
    chain.begin(str(path))
    for number in range(count, -1, -1):
        with path.open('ab') as file:
            file.write(b'%d' % number)
        if number:
            rotate(path)
    return path


def rotate(path: Path) -> None:
    for number in range(30, -1, -1):
        with contextlib.suppress(FileNotFoundError):
            os.rename(f'{path}.{number}', f'{path}.{number + 1}')
    path.rename(f'{path}.0')
    path.touch()


@pytest.mark.parametrize(('bad', 'expected'), [
    (['.1'], [('.4', b'5', 1), ('.3', b'4', 1), ('.2', b'3', 1),
              ('', b'10', 2)]),
    (['.1', '.3'], [('.4', b'5', 1), ('.2', b'3', 1), ('', b'10', 2)]),
    (['.4'], [('', b'43210', 5)]),
    ([''], [(f'.{n}', b'%d' % (n + 1), 1) for n in (4, 3, 2, 1, 0)])])
def test_a_rotated_file_that_cannot_be_opened_is_said(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: list[str],
        expected: list[tuple[str, bytes, int]]) -> None:
    """What is older is there all the same."""
    path = chain_of(tmp_path, 5)
    names = [path.name + end for end in bad]
    fail_to_open(monkeypatch, *names)
    entries, unreadable = exported_of(path, tmp_path / 'out')
    assert entries == [(path.name + end, data, files, False)
                       for end, data, files in expected]
    assert unreadable == {name: (
        f'{tmp_path}/{name} cannot be read: Input/output error. See to the '
        f'file system that it is on.') for name in names}
    assert descriptors.below(tmp_path) == []


def test_a_backup_that_is_none_is_said(tmp_path: Path) -> None:
    path = chain_of(tmp_path, 3)
    (tmp_path / 'console.log.1').unlink()
    (tmp_path / 'console.log.1').symlink_to('/etc/passwd')
    entries, unreadable = exported_of(path, tmp_path / 'out')
    assert [(name, data) for name, data, _, _ in entries] == [
        ('console.log.2', b'3'), ('console.log', b'10')]
    assert 'not a regular file' in unreadable['console.log.1']


def test_a_file_that_is_looked_at_in_vain_does_not_cost_the_others(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS opens a file that it does not have any more."""
    path = chain_of(tmp_path, 3)
    gone = os.stat(f'{path}.1').st_ino
    fstat = os.fstat

    def looked_at(directory: Directory, fd: int) -> os.stat_result:
        if fstat(fd).st_ino == gone:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return fstat(fd)
    monkeypatch.setattr(Directory, 'fstat', looked_at)
    entries, unreadable = exported_of(path, tmp_path / 'out')
    assert b''.join(data for _, data, _, _ in entries) == b'310'
    assert list(unreadable) == ['console.log.1']


@pytest.mark.parametrize('times', [1, 2])
def test_what_is_renamed_as_older_files_are_opened(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """What has come since is not taken for older."""
    path = chain_of(tmp_path, 4)
    fail_to_open(monkeypatch, 'console.log.1')
    runs, bad = chain.runs, os.stat(f'{path}.1').st_ino

    def rotated(*arguments: Any, **named: Any) -> list[chain.Snapshot]:
        found = runs(*arguments, **named)
        monkeypatch.undo()
        for number in range(times):
            rotate(path)
            path.write_bytes(b'new%d' % number)
        name = next(one.name for one in tmp_path.iterdir()
                    if one.stat().st_ino == bad)
        fail_to_open(monkeypatch, name)
        return found
    monkeypatch.setattr(export, 'runs', rotated)
    out = tmp_path / 'out'
    out.mkdir()
    exported = export.export(
        [(0, str(path))], DirectoryTarget(str(out)), ABOUT, nothing)
    assert [(out / entry.name).read_bytes()
            for entry in exported.entries] == [b'4', b'3', b'10']
    assert list(exported.unreadable) == [f'console.log.{1 + times}']


def fails(number: int) -> Callable[..., Any]:
    def failing(*_: object) -> None:
        raise OSError(number, os.strerror(number))
    return failing


def test_a_chain_with_a_hole(tmp_path: Path) -> None:
    """All that there is is exported, and it is not called whole."""
    path = tmp_path / 'console.log'
    chain.begin(str(path))
    path.rename(tmp_path / 'console.log.1')
    (tmp_path / 'console.log.1').write_bytes(b'old')
    path.write_bytes(b'new')
    out = tmp_path / 'out'
    out.mkdir()
    [entry] = export.export(
        [(0, str(path))], DirectoryTarget(str(out)), ABOUT, nothing).entries
    assert (out / 'console.log').read_bytes() == b'oldnew'
    assert (entry.files, entry.whole) == (2, False)


def test_the_cost_does_not_depend_on_the_number(tmp_path: Path) -> None:
    path = tmp_path / f'console.g{generation.MAX_GENERATION}.log'
    path.write_bytes(b'x')
    with TarTarget(io.BytesIO(), 'x') as target:
        [entry] = export.export(
            [(0, str(path))], target, ABOUT, nothing).entries
    assert entry.size == 1


@pytest.mark.parametrize('name', ['guest.log', 'console.log'])
def test_a_log_without_a_directory_is_left_out(
        tmp_path: Path, name: str) -> None:
    (tmp_path / 'other.log').write_bytes(b'all')
    out = tmp_path / 'out'
    out.mkdir()
    paths = [(0, str(tmp_path / 'gone' / name)),
             (1, str(tmp_path / 'other.log'))]
    assert export.size(paths) == 3
    [entry] = export.export(
        paths, DirectoryTarget(str(out)), ABOUT, nothing).entries
    assert entry.name == 'other.log'


def test_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(exception.LogNotFound, match='no console log yet'):
        export.export([(0, str(tmp_path / 'none/console.log'))],
                      DirectoryTarget(str(tmp_path)), ABOUT, nothing)


def test_usage(logs: Path) -> None:
    usage = files.usage(str(logs / 'console.g2.log'))
    assert (usage.files, usage.rotated, usage.size) == (6, 5, 6)
    assert usage.last_write == max(
        path.stat().st_mtime for path in logs.glob('console.[gl]*log*'))
    assert files.usage(str(logs / 'console.port1.g2.log')).size == 10


def test_usage_of_a_log_of_any_name(tmp_path: Path) -> None:
    for name in ('vm.log', 'vm.log.0', 'vm.log.31', 'vm.log.32', 'vm.log.x',
                 'vm.log.00', 'other.log'):
        (tmp_path / name).write_bytes(b'x')
    usage = files.usage(str(tmp_path / 'vm.log'))
    assert (usage.files, usage.rotated) == (3, 2)
    assert files.usage('/nowhere/vm.log') == files.Usage(0, 0, 0, None)


def test_logs_of_one_name_from_several_directories(tmp_path: Path) -> None:
    paths = []
    for port, (directory, name) in enumerate((
            ('a', 'guest.log'), ('b', 'guest.log'), ('c', 'port1-guest.log'),
            ('d', export.MANIFEST), ('e', 'guest.log'))):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / name).write_bytes(b'%d' % port)
        paths.append((port, str(tmp_path / directory / name)))
    out = tmp_path / 'out'
    out.mkdir()
    entries = export.export(
        paths, DirectoryTarget(str(out)), ABOUT, nothing).entries
    assert [(out / entry.name).read_bytes() for entry in entries] == [
        b'0', b'1', b'2', b'3', b'4']
    assert len({entry.name for entry in entries}) == 5
    assert json.loads((out / export.MANIFEST).read_text())['files'][4][
        'name'] == entries[4].name
