# SPDX-License-Identifier: Apache-2.0
"""A damaged log gives one clear error, or the right bytes."""

import contextlib
import errno
import os
import pathlib
import socket
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.cmd import rotated
from tests.unit.console_log.rotating import MemoryDirectory
from virtlogd_driver import exception
from virtlogd_driver.console_log import chain, export, files, log, reader
from virtlogd_driver.console_log.directory import Directory


def link(path: pathlib.Path) -> None:
    secret = path.parent / 'secret'
    secret.write_bytes(b'secret')
    path.symlink_to(secret)


def dangling(path: pathlib.Path) -> None:
    path.symlink_to(path.parent / 'nothing')


def unix_socket(path: pathlib.Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


Damage = Callable[[pathlib.Path], None]

damages = pytest.mark.parametrize('damage', [
    link, dangling, unix_socket, os.mkfifo, os.mkdir])


@damages
def test_live_file(damage: Damage, tmp_path: pathlib.Path) -> None:
    path = tmp_path / 'console.log'
    damage(path)
    (tmp_path / 'console.log.0').write_bytes(b'backup')
    for read in (
            lambda: reader.read_tail(str(path), 99),
            lambda: reader.read_from(str(path), None, 99)):
        with pytest.raises(exception.LogNotRegular, match=r'console\.log is'):
            read()


@damages
def test_backup(damage: Damage, tmp_path: pathlib.Path) -> None:
    """What is newer than it is still there to be read."""
    (tmp_path / 'console.log').write_bytes(b'3')
    (tmp_path / 'console.log.0').write_bytes(b'2')
    damage(tmp_path / 'console.log.1')
    (tmp_path / 'console.log.2').write_bytes(b'1')
    read = reader.read_tail(str(tmp_path / 'console.log'), 99)
    assert (read.data, read.exact) == (b'23', False)
    assert reader.read_tail(str(tmp_path / 'console.log'), 2).exact
    assert reader.read_from(
        str(tmp_path / 'console.log'), None, 99).data == b'23'


def test_device() -> None:
    with pytest.raises(exception.LogNotRegular, match='/dev/zero'):
        reader.read_tail('/dev/zero', 99)


def test_directory_is_a_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / 'file').touch()
    with pytest.raises(exception.LogRefused):
        reader.read_tail(str(tmp_path / 'file' / 'console.log'), 99)


def test_name_too_long(tmp_path: pathlib.Path) -> None:
    with pytest.raises(exception.LogError, match='too long'):
        reader.read_tail(str(tmp_path / ('x' * 300)), 99)


def test_file_of_1_tib(tmp_path: pathlib.Path) -> None:
    path = tmp_path / 'console.log'
    for name in ('console.log.0', 'console.log'):
        with (tmp_path / name).open('wb') as file:
            file.seek(1 << 40)
            file.write(b'end')
    read = reader.read_tail(str(path), 5)
    assert read.data == b'\0\0end'
    since = reader.read_from(str(path), None, 5)
    assert since.data == bytes(5)
    assert since.behind == 2 * (1 << 40) + 6 - 5


class Shrinking(Directory):
    """A file becomes shorter each time after it was looked at."""

    __slots__ = ('path_of_file', 'times')

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        self._shrink()
        return super().pread(fd, size, offset)

    def preadv(self, fd: int, into: memoryview, offset: int) -> int:
        self._shrink()
        return super().preadv(fd, into, offset)

    def _shrink(self) -> None:
        if self.times:
            self.times -= 1
            size = os.stat(self.path_of_file).st_size
            os.truncate(self.path_of_file, size * 2 // 3)


@pytest.mark.parametrize('times', [1, 100])
@pytest.mark.parametrize('shrinks', ['console.log', 'console.log.0'])
def test_file_shrinks(
        shrinks: str, times: int, tmp_path: pathlib.Path) -> None:
    (tmp_path / 'console.log.0').write_bytes(b'a' * 10000)
    (tmp_path / 'console.log').write_bytes(b'b' * 10000)
    directory = Shrinking(
        os.open(tmp_path, os.O_PATH | os.O_DIRECTORY), str(tmp_path))
    directory.path_of_file = str(tmp_path / shrinks)
    directory.times = times
    with directory:
        read = log.read_tail(directory, 'console.log', 99999)
        assert set(read.data) <= {ord('a'), ord('b')}
        assert read.data == bytes(sorted(read.data))
        assert read.exact == (times == 1)
        if shrinks == 'console.log.0':
            assert read.data.count(b'b') == 10000
        directory.times = times
        since = log.read_from(directory, 'console.log', None, 99999)
        assert since.data == bytes(sorted(since.data))
        assert since.missed == 0


def test_file_vanishes() -> None:
    """Each file is gone once it is open, until there is none."""
    directory = MemoryDirectory()
    for name in ('console.log', 'console.log.0', 'console.log.1'):
        directory.create(name, 0).data += b'x'

    def vanish() -> None:
        if directory.opened:
            directory.files.pop('console.log', None)

    directory.before = vanish
    read = log.read_tail(directory, 'console.log', 99)
    assert read.data == b'xx'
    assert not directory.opened


def test_error_of_the_file_system() -> None:
    class Broken(MemoryDirectory):
        __slots__ = ()

        def pread(self, fd: int, size: int, offset: int) -> bytes:
            raise OSError(5, 'Input/output error')

    directory = Broken()
    directory.create('console.log', 0).data += b'x' * 100
    for limit in (1, 99, 101):
        with pytest.raises(exception.LogError, match='Input/output error'):
            log.read_tail(directory, 'console.log', limit)
    with pytest.raises(exception.LogError, match='Input/output error'):
        log.read_from(directory, 'console.log', None, 99)
    assert not directory.opened


def test_of_the_newest_file_the_disk_gives_the_last_bytes_alone() -> None:
    """That is not taken for a log with nothing in it."""
    class Broken(MemoryDirectory):
        __slots__ = ()

        def pread(self, fd: int, size: int, offset: int) -> bytes:
            if size > log.MARKED_BYTES:
                raise OSError(5, 'Input/output error')
            return super().pread(fd, size, offset)

    directory = Broken()
    directory.create('console.log', 0).data += b'x' * 100
    with pytest.raises(exception.LogError, match='Input/output error'):
        log.read_tail(directory, 'console.log', 9999)


class Failing(MemoryDirectory):
    """A disk that gives some of the files, or of their bytes."""

    __slots__ = ('errno', 'name', 'what')

    def __init__(self, what: str, name: str, number: int) -> None:
        super().__init__()
        self.what, self.name, self.errno = what, name, number
        for number in (2, 1, 0):
            self.create(f'console.log.{number}', 0).data += b'%d' % number
        self.create('console.log', 0).data += b'live'

    def open(self, name: str) -> int:
        if (self.what, self.name) == ('open', name):
            raise self._meaning(OSError(self.errno, 'made by the test'), name)
        return super().open(name)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        if self.what == 'read' and self.opened[fd] is self.files[self.name]:
            raise OSError(self.errno, 'made by the test')
        return super().pread(fd, size, offset)


@pytest.mark.parametrize('number', [errno.EIO, errno.ESTALE])
@pytest.mark.parametrize('what', ['open', 'read'])
@pytest.mark.parametrize(('name', 'left'), [
    ('console.log.2', b'10live'), ('console.log.1', b'0live'),
    ('console.log.0', b'live')])
def test_the_disk_does_not_give_a_backup(
        what: str, name: str, left: bytes, number: int) -> None:
    """What is newer is shown, and that it is not all is said."""
    directory = Failing(what, name, number)
    read = log.read_tail(directory, 'console.log', 99)
    assert (read.data, read.exact) == (left, False)
    assert (name if what == 'open' else
            f'(inode {directory.files[name].inode})') in str(read.failure)
    assert log.read_tail(directory, 'console.log', len(left)).exact
    assert not directory.opened


@pytest.mark.parametrize('number', [errno.EIO, errno.ESTALE])
def test_the_disk_does_not_tell_of_what_is_older(
        number: int, tmp_path: pathlib.Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the live file is missing, too: it is not as if it was not there.
    """
    path = tmp_path / 'console.log'
    rotated.make(path, b'older', b'new')
    path.unlink()
    (tmp_path / 'console.log.0').rename(tmp_path / 'console.log.1')
    rotated.make(path, b'newer', b'new')
    path.unlink()
    looks = {name: getattr(os, name) for name in ('open', 'stat')}

    def fails(name: str) -> Any:
        def fail(what: Any, *args: Any, **kwargs: Any) -> Any:
            if str(what).endswith('console.log.1'):
                raise OSError(number, os.strerror(number))
            return looks[name](what, *args, **kwargs)
        return fail

    with monkeypatch.context() as broken:
        for name in looks:
            broken.setattr(os, name, fails(name))
        broken.setattr(os, 'access', lambda *_, **__: False)
        read = reader.read_tail(str(path), 99)
        assert (read.data, read.exact) == (b'newer', False)
        assert os.strerror(number) in str(read.failure)
    reader.forget(str(tmp_path))
    assert reader.read_tail(str(path), 99).data == b'oldernewer'


@pytest.mark.parametrize('number', [errno.EIO, errno.ESTALE, errno.EMFILE])
def test_the_disk_does_not_give_the_live_file(number: int) -> None:
    directory = Failing('open', 'console.log', number)
    with pytest.raises(exception.LogError, match='See to the file system'):
        log.read_tail(directory, 'console.log', 99)


@pytest.mark.parametrize('name', ['console.g1.log.0', 'console.g1.history'])
@pytest.mark.parametrize('call', ['open', 'pread'])
def test_what_is_older_is_not_given_for_a_moment(
        call: str, name: str, tmp_path: pathlib.Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said, and read again as soon as it is."""
    path = tmp_path / 'console.g1.log'
    if name == 'console.g1.history':
        chain.begin(str(path))
        path.write_bytes(b'new')
        (tmp_path / name).write_bytes(b'old')
    else:
        rotated.make(path, b'old', b'new')
    number = (tmp_path / name).stat().st_ino
    real = getattr(os, call)

    def fail(what: Any, *args: Any, **kwargs: Any) -> Any:
        with contextlib.suppress(FileNotFoundError):
            if os.stat(what, dir_fd=kwargs.get('dir_fd')).st_ino == number:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(what, *args, **kwargs)

    with monkeypatch.context() as broken:
        broken.setattr(os, call, fail)
        read = reader.read_tail(str(path), 99)
        assert (read.data, read.exact) == (b'new', False)
        assert 'Input/output error' in str(read.failure)
        # Nothing of it is wanted.
        assert reader.read_tail(str(path), 3).failure is None
    read = reader.read_tail(str(path), 99)
    assert (read.data, read.failure) == (b'oldnew', None)


@pytest.mark.parametrize('live', [True, False])
def test_a_history_is_not_given(live: bool, tmp_path: pathlib.Path,
                                monkeypatch: pytest.MonkeyPatch) -> None:
    """It is missed where it belongs to what is there, or is all there is."""
    path = tmp_path / 'console.g1.log'
    history = tmp_path / 'console.g1.history'
    history.write_bytes(b'old')
    if live:
        # Its beginning is not there.
        path.write_bytes(b'new')
    real = os.open

    def fail(name: str, *args: Any, **kwargs: Any) -> int:
        if name == history.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(name, *args, **kwargs)

    monkeypatch.setattr(os, 'open', fail)
    if live:
        read = reader.read_tail(str(path), 99)
        assert (read.data, read.failure) == (b'new', None)
    else:
        with pytest.raises(exception.LogDamaged, match=r'g1\.history cannot'):
            reader.read_tail(str(path), 99)


def test_what_is_held_open_is_not_given_any_more(
        tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is opened anew at once, as an NFS server that has come back asks."""
    path = tmp_path / 'console.log'
    rotated.make(path, b'old', b'new')
    assert reader.read_tail(str(path), 99).data == b'oldnew'
    stale = {name for name in os.listdir('/proc/self/fd') if os.path.exists(
        f'/proc/self/fd/{name}') and os.path.samefile(
            f'/proc/self/fd/{name}', f'{path}.0')}
    assert stale
    pread, close = os.pread, os.close

    def fail(fd: int, *args: Any) -> bytes:
        if str(fd) in stale:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return pread(fd, *args)

    def closed(fd: int) -> None:
        stale.discard(str(fd))
        close(fd)

    monkeypatch.setattr(os, 'pread', fail)
    monkeypatch.setattr(os, 'close', closed)
    read = reader.read_tail(str(path), 99)
    assert (read.data, read.failure) == (b'oldnew', None)


@pytest.mark.parametrize('number', [
    errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOTDIR])
@pytest.mark.parametrize('call', ['listdir', 'lstat', 'open'])
def test_errors_of_a_directory_are_ours(
        number: int, call: str, tmp_path: pathlib.Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with it, it is one guest's, and has a remedy."""
    path = tmp_path / 'console.g1.log'
    path.write_bytes(b'x')

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, 'made by the test')

    monkeypatch.setattr(os, call, fail)
    if call != 'open':
        with pytest.raises(exception.LogError, match=r'Run it|See to|Put the'):
            files.usage(str(path))
    if call == 'listdir' and number in (errno.EIO, errno.ESTALE):
        # What can be read is shown.
        read = reader.read_tail(str(path), 9)
        assert (read.data, read.exact) == (b'x', False)
    elif call != 'lstat':
        with pytest.raises(exception.LogError):
            reader.read_tail(str(path), 9)
    if call != 'lstat':
        with pytest.raises(exception.LogError, match=r'Run it|See to|Put the'):
            export.export([(0, str(path))], export.DirectoryTarget(
                str(tmp_path)), {}, lambda count: None)


def test_a_directory_that_is_a_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / 'console').write_bytes(b'x')
    path = str(tmp_path / 'console/vm.log')
    with pytest.raises(exception.LogRefused, match='is not a directory'):
        files.usage(path)
    with pytest.raises(exception.LogRefused, match='is not a directory'):
        export.size([(0, str(tmp_path / 'console/console.log'))])
