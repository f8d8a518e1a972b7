# SPDX-License-Identifier: Apache-2.0
"""A disk is changed by few system calls, which survive what may happen."""

import errno
import fcntl
import functools
import os
import pathlib
import socket
import threading
import time
from typing import Any

import pytest

from tests.unit import descriptors
from tests.unit.history import crash
from virtlogd_driver.history import files


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what was synced, in order."""
    found: list[str] = []
    fsync = os.fsync

    def noting(fd: int) -> None:
        found.append(os.path.basename(os.readlink(f'/proc/self/fd/{fd}')))
        fsync(fd)
    monkeypatch.setattr(os, 'fsync', noting)
    return found


@pytest.fixture
def victim(tmp_path: pathlib.Path) -> pathlib.Path:
    """What is no business of whoever puts links to it."""
    path = tmp_path / 'victim'
    path.mkdir()
    (path / 'file').write_bytes(b'x')
    return path


def no_regular_file(path: pathlib.Path, kind: str,
                    victim: pathlib.Path) -> None:
    if kind == 'link':
        path.symlink_to(victim / 'file')
    elif kind == 'directory':
        path.mkdir()
    elif kind == 'fifo':
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))


KINDS = ['link', 'directory', 'fifo', 'socket']


class TestLook:

    def test_names(self, victim, tmp_path) -> None:
        for name in ('c', 'a', 'b'):
            (tmp_path / name).touch()
        assert files.names(str(tmp_path)) == ['a', 'b', 'c', 'victim']
        assert files.names(str(tmp_path / 'gone')) == []
        assert files.names(str(victim / 'file')) == []

    def test_a_directory(self, victim, tmp_path) -> None:
        (tmp_path / 'link').symlink_to(victim)
        (tmp_path / 'dangling').symlink_to(tmp_path / 'gone')
        assert files.is_directory(str(victim))
        for path in (tmp_path / 'link', tmp_path / 'dangling',
                     tmp_path / 'gone', victim / 'file'):
            assert not files.is_directory(str(path))
        assert files.is_directory(str(tmp_path / 'link'), follow=True)
        for path in (tmp_path / 'dangling', tmp_path / 'gone',
                     victim / 'file'):
            assert not files.is_directory(str(path), follow=True)

    def test_what_may_be_there(self, victim, tmp_path) -> None:
        (tmp_path / 'dangling').symlink_to(tmp_path / 'gone')
        for path in (victim, victim / 'file', tmp_path / 'dangling'):
            assert files.exists(str(path))
            assert files.may_exist(str(path))
        for path in (tmp_path / 'gone', victim / 'file/gone'):
            assert not files.exists(str(path))
            assert not files.may_exist(str(path))

    @pytest.mark.parametrize('ask', [
        files.look, files.exists, files.is_directory, files.size])
    def test_the_disk_does_not_tell(self, victim, monkeypatch, ask) -> None:
        """That is not to say that there is nothing."""
        def fail(path: str) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        monkeypatch.setattr(os, 'lstat', fail)
        with pytest.raises(OSError, match='Input/output error'):
            ask(str(victim))


#: What looks at a disk, each with the call that may fail.
LOOKS = [(files.look, 'lstat'), (files.exists, 'lstat'),
         (files.is_directory, 'lstat'), (files.size, 'lstat'),
         (functools.partial(files.is_directory, follow=True), 'stat'),
         (files.names, 'listdir'), (files.open_to_read, 'open'),
         (functools.partial(files.read, limit=9), 'open'),
         (functools.partial(files.read, limit=9), 'fstat'),
         (files.sync, 'open'), (files.sync_directory, 'open')]


class TestTriedAgain:

    @pytest.mark.parametrize(('number', 'calls'), [
        (errno.EIO, 2), (errno.ESTALE, 2), (errno.ENOENT, 1),
        (errno.ENOTDIR, 1)])
    @pytest.mark.parametrize(('ask', 'call'), LOOKS)
    def test_what_fails_is_asked_once_more(
            self, victim, monkeypatch, ask, call, number, calls) -> None:
        """But for what is an answer."""
        asked = []

        def fail(what: Any, *_: Any, **__: Any) -> None:
            asked.append(what)
            raise OSError(number, os.strerror(number))
        with monkeypatch.context() as broken:
            broken.setattr(os, call, fail)
            try:
                ask(str(victim / 'file'))
                said = None
            except OSError as e:
                said = e.errno
        assert said in ((number, None) if calls == 1 else (number,))
        assert len(asked) == calls

    @pytest.mark.parametrize(('ask', 'call'), LOOKS)
    def test_it_fails_for_a_moment(self, victim, monkeypatch, ask,
                                   call) -> None:
        real, failures = getattr(os, call), [errno.EIO]
        path = str(victim if call == 'listdir'
                   or ask is files.sync_directory else victim / 'file')

        def fail(*args: Any, **kwargs: Any) -> Any:
            if failures:
                raise OSError(failures.pop(), '')
            return real(*args, **kwargs)
        expected = ask(path)
        with monkeypatch.context() as broken:
            broken.setattr(os, call, fail)
            found = ask(path)
        if ask is files.open_to_read:
            os.close(expected)
            os.close(found)
        else:
            assert found == expected
        assert failures == []

    @pytest.mark.parametrize(('change', 'call'), [
        (lambda path: files.make_directory(f'{path}/new'), 'mkdir'),
        (lambda path: files.make_directory(f'{path}/new'), 'fsync'),
        (lambda path: files.rename(f'{path}/file', f'{path}/new'), 'rename'),
        (files.sync_directory, 'fsync')])
    def test_names_are_changed_once_more(self, victim, monkeypatch, change,
                                         call) -> None:
        real, failures = getattr(os, call), [errno.EIO]

        def fail(*args: Any) -> Any:
            if failures:
                raise OSError(failures.pop(), '')
            return real(*args)
        monkeypatch.setattr(os, call, fail)
        change(str(victim))
        assert failures == []
        assert change is files.sync_directory or (victim / 'new').exists()

    def test_a_directory_was_made_all_the_same(self, victim,
                                               monkeypatch) -> None:
        """As NFS may have it, where the answer was lost."""
        mkdir = os.mkdir

        def make(path: str, mode: int) -> None:
            mkdir(path, mode)
            raise OSError(errno.EIO, '')
        monkeypatch.setattr(os, 'mkdir', make)
        files.make_directory(str(victim / 'new'))
        assert (victim / 'new').stat().st_mode & 0o777 == 0o700

    def test_data_is_synced_once(self, victim, monkeypatch) -> None:
        """What it has lost a second time would not say."""
        failures = [errno.EIO]

        def fail(_: int) -> None:
            if failures:
                raise OSError(failures.pop(), '')
        monkeypatch.setattr(os, 'fsync', fail)
        with pytest.raises(OSError):  # noqa: PT011 - any
            files.sync(str(victim / 'file'))


class TestSize:

    @pytest.mark.parametrize('kind', KINDS)
    def test_size(self, victim, tmp_path, kind) -> None:
        no_regular_file(tmp_path / 'x', kind, victim)
        assert files.size(str(tmp_path / 'x')) is None
        assert files.size(str(tmp_path / 'gone')) is None
        assert files.size(str(victim / 'file')) == 1


class TestRead:

    def test_a_bound(self, victim) -> None:
        (victim / 'file').write_bytes(b'four')
        path = str(victim / 'file')
        assert files.read(path, 4) == b'four'
        with pytest.raises(ValueError, match='more than 3 bytes'):
            files.read(path, 3)
        assert files.read(path, 3, cut=True) == b'fou'

    @pytest.mark.parametrize('kind', KINDS)
    def test_no_regular_file(self, victim, tmp_path, kind) -> None:
        """It is refused at once, and nothing stays open."""
        no_regular_file(tmp_path / 'x', kind, victim)
        with pytest.raises(ValueError, match='is no regular file'):
            files.read(str(tmp_path / 'x'), 100)
        assert descriptors.below(tmp_path) == []

    def test_there_is_none(self, tmp_path) -> None:
        with pytest.raises(FileNotFoundError):
            files.read(str(tmp_path / 'gone'), 100)

    def test_another_error(self, tmp_path) -> None:
        with pytest.raises(OSError) as caught:  # noqa: PT011 - by its number
            files.read(str(tmp_path / ('x' * 300)), 100)
        assert caught.value.errno == errno.ENAMETOOLONG

    def test_a_link_is_not_opened(self, victim, tmp_path) -> None:
        (tmp_path / 'x').symlink_to(victim / 'file')
        for call in (files.open_to_read, files.sync):
            with pytest.raises(OSError, match='symbolic links'):
                call(str(tmp_path / 'x'))


class TestWrite:

    def test_to_the_disk(self, tmp_path, synced) -> None:
        path = tmp_path / 'x'
        files.write(str(path), b'data')
        assert path.read_bytes() == b'data'
        assert path.stat().st_mode & 0o777 == 0o600
        assert synced == ['x']
        with pytest.raises(FileExistsError):
            files.write(str(path), b'other')
        assert path.read_bytes() == b'data'

    def test_bit_by_bit(self, tmp_path, monkeypatch) -> None:
        """A system call may write less than it was given."""
        write = os.write
        monkeypatch.setattr(os, 'write', lambda fd, data: write(
            fd, data[:2]))
        files.write(str(tmp_path / 'x'), b'12345')
        assert (tmp_path / 'x').read_bytes() == b'12345'

    @pytest.mark.parametrize('call', ['write', 'fsync'])
    def test_a_full_disk(self, tmp_path, monkeypatch, call) -> None:
        """Nothing is left, and what was there is."""
        (tmp_path / 'x').write_bytes(b'older')

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, 'full')
        monkeypatch.setattr(os, call, full)
        for function, name in ((files.write, 'y'), (files.replace, 'x')):
            with pytest.raises(OSError, match='full'):
                function(str(tmp_path / name), b'newer')
        assert os.listdir(tmp_path) == ['x']
        assert (tmp_path / 'x').read_bytes() == b'older'

    def test_instead_of_another(self, tmp_path, synced) -> None:
        """What a crash has left half written is in nobody's way."""
        path = tmp_path / 'x'
        path.write_bytes(b'older')
        (tmp_path / 'x.new').write_bytes(b'half')
        files.replace(str(path), b'newer')
        assert path.read_bytes() == b'newer'
        assert synced == ['x.new', tmp_path.name]
        assert os.listdir(tmp_path) == ['x']

    def test_a_directory(self, tmp_path, synced) -> None:
        path = tmp_path / 'x'
        for _ in range(2):
            files.make_directory(str(path))
            assert path.stat().st_mode & 0o777 == 0o700
        assert synced == [tmp_path.name]
        (tmp_path / 'file').touch()
        with pytest.raises(NotADirectoryError):
            files.sync_directory(str(tmp_path / 'file'))


class TestRename:

    def test_to_a_new_name(self, victim) -> None:
        files.rename(str(victim / 'file'), str(victim / 'new'))
        assert os.listdir(victim) == ['new']

    @pytest.mark.parametrize('there', ['other', 'dangling'])
    def test_nothing_is_replaced(self, victim, there) -> None:
        (victim / 'other').write_bytes(b'other')
        (victim / 'dangling').symlink_to('gone')
        with pytest.raises(FileExistsError) as caught:
            files.rename(str(victim / 'file'), str(victim / there))
        assert caught.value.filename == str(victim / there)
        assert len(os.listdir(victim)) == 3


class TestRemove:

    def test_with_all_that_is_in_it(self, victim, tmp_path) -> None:
        """But nothing that a link in it leads to."""
        path = tmp_path / 'x'
        (path / 'below/deeper').mkdir(parents=True)
        (path / 'below/file').touch()
        (path / 'link').symlink_to(victim)
        os.mkfifo(path / 'fifo')
        files.remove_tree(str(path))
        assert os.listdir(tmp_path) == ['victim']
        assert (victim / 'file').exists()

    def test_however_deep(self, tmp_path) -> None:
        path = str(tmp_path / 'tree')
        for depth in range(1200):
            os.mkdir(path + '/a' * depth)
        files.remove_tree(path)
        assert os.listdir(tmp_path) == []

    def test_one_file_or_nothing(self, victim) -> None:
        for _ in range(2):
            files.remove_tree(str(victim / 'file'))
        files.remove(str(victim / 'file'))
        assert os.listdir(victim) == []


def is_free(path: pathlib.Path, seconds: float = 0) -> bool:
    try:
        with files.locked(str(path), seconds):
            return True
    except BlockingIOError:
        return False


class TestLocked:

    def test_one_after_the_other(self, tmp_path) -> None:
        order = []
        with files.locked(str(tmp_path), 60):
            def other() -> None:
                with files.locked(str(tmp_path), 60):
                    order.append('other')
            thread = threading.Thread(target=other)
            thread.start()
            assert not is_free(tmp_path)
            order.append('first')
        thread.join()
        assert order == ['first', 'other']
        assert os.listdir(tmp_path) == []

    def test_it_is_not_waited_for_longer(self, tmp_path,
                                         monkeypatch) -> None:
        """By the clock, whoever has it."""
        now, waits = [100.0], []
        monkeypatch.setattr(time, 'monotonic', lambda: now[0])

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            now[0] += 1.0
        monkeypatch.setattr(time, 'sleep', sleep)
        with files.locked(str(tmp_path), 5):
            assert not is_free(tmp_path, 3)
        assert 3 <= len(waits) <= 4
        assert all(0 < wait < 1 for wait in waits)

    @pytest.mark.parametrize('number', [errno.EBADF, errno.EINVAL])
    def test_a_directory_that_cannot_be_locked(
            self, tmp_path, monkeypatch, number) -> None:
        """NFS: a file in it is."""
        flock = fcntl.flock
        locked = []

        def nfs(fd: int, operation: int) -> None:
            path = os.readlink(f'/proc/self/fd/{fd}')
            if path == str(tmp_path):
                raise OSError(number, 'no')
            locked.append(os.path.basename(path))
            flock(fd, operation)
        monkeypatch.setattr(fcntl, 'flock', nfs)
        for _ in range(2):
            with files.locked(str(tmp_path), 60):
                assert not is_free(tmp_path)
        assert set(locked) == {'console.lock'}
        assert (tmp_path / 'console.lock').stat().st_mode & 0o777 == 0o600
        assert descriptors.below(tmp_path) == []

    def test_nor_can_a_file_be_made_there(self, tmp_path,
                                          monkeypatch) -> None:
        """What another thread opens meanwhile stays open."""
        opened = []

        def nfs(*_: object) -> None:
            raise OSError(errno.EBADF, 'no')
        real = os.open

        def full(path: str, flags: int, mode: int = 0o777) -> int:
            if os.path.basename(path) == 'console.lock':
                opened.append(real(os.devnull, os.O_RDONLY))
                raise OSError(errno.ENOSPC, 'No space left on device')
            return real(path, flags, mode)
        monkeypatch.setattr(fcntl, 'flock', nfs)
        monkeypatch.setattr(os, 'open', full)
        with pytest.raises(OSError, match='No space left on device'):
            is_free(tmp_path, 60)
        for fd in opened:
            os.close(fd)
        assert descriptors.below(tmp_path) == []

    def test_nothing_can_be_locked(self, tmp_path, monkeypatch) -> None:
        """The file is no better: that is said, and not tried for ever."""
        tried = []

        def fail(*_: object) -> None:
            tried.append(1)
            if len(tried) > 10:
                raise crash.Killed
            raise OSError(errno.EINVAL, 'Invalid argument')
        monkeypatch.setattr(fcntl, 'flock', fail)
        with pytest.raises(OSError, match='Invalid argument'):
            is_free(tmp_path, 60)
        assert descriptors.below(tmp_path) == []

    def test_another_error_is_not_waited_out(
            self, tmp_path, monkeypatch) -> None:
        def fail(*_: object) -> None:
            raise OSError(errno.ENOLCK, 'no locks')
        monkeypatch.setattr(fcntl, 'flock', fail)
        with pytest.raises(OSError, match='no locks'):
            is_free(tmp_path, 60)
        assert descriptors.below(tmp_path) == []
