# SPDX-License-Identifier: Apache-2.0
"""The logs of deleted instances: what is kept, and for how long.

Every operation is stopped before each changing call, as in
test_crash_points.py: what comes next finishes it.
"""

import contextlib
import errno
import math
import os
import pathlib
import shutil
import stat
import threading
import types
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies

from tests.unit.history import crash
from tests.unit.history.hosts import (
    AFTER,
    BEFORE,
    GUEST,
    LIMIT,
    Host,
    departure,
    fill,
)
from tests.unit.history.test_crash_points import STATES
from virtlogd_driver.console_log import reader
from virtlogd_driver.history import (
    boot,
    deleted,
    files,
    history,
    logs,
    outbox,
)

OTHER = '6ba7b810-9dad-11d1-80b4-00c04fd430c9'
HOUR = 3600
#: When the guest is deleted, in seconds since the epoch.
NOW = 1_790_000_000.5
ABOUT = deleted.About('instance-00000007', 'web', 'project', 'deleted')


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, 'fsync', lambda fd: None)
    monkeypatch.setattr(history.health, 'wait_until_closed',
                        lambda *_: True)
    monkeypatch.setattr(history.time, 'time', lambda: NOW)


@pytest.fixture
def host(tmp_path: pathlib.Path) -> Host:
    made = Host(tmp_path / 'instances')
    fill(made.directory)
    return made


def keeping(host: Host, seconds: int = HOUR, limit: int = 1 << 30,
            name: str = 'host1') -> deleted.Keeping:
    return deleted.Keeping(str(host.path), name, seconds, limit)


def keep(host: Host) -> None:
    host.kept.keep_deleted(None, host.directory, keeping(host), ABOUT)


def kept(host: Host) -> list[deleted.Kept]:
    return deleted.kept(str(host.path))


def text(one: deleted.Kept) -> bytes:
    (name,) = logs.newest(one.entry.path)
    return reader.read_tail(os.path.join(one.entry.path, name), LIMIT).data


class TestKeep:

    def test_it_is_all_there(self, host) -> None:
        inode = os.stat(f'{host.directory}/console.log').st_ino
        keep(host)
        (one,) = kept(host)
        assert text(one) == BEFORE
        assert os.stat(f'{one.entry.path}/console.log').st_ino == inode
        assert [noted.time for noted in boot.read(one.entry.path)] == [
            1.0, 2.0]
        # Where it is one now as well.
        position = boot.read(one.entry.path)[-1].positions[0]
        assert reader.read_from(
            f'{one.entry.path}/console.log', position, LIMIT).missed == 0
        # nova's own is nova's.
        assert os.listdir(host.directory) == ['disk']

    def test_what_is_said_of_it(self, host) -> None:
        keep(host)
        (one,) = kept(host)
        assert one.entry.size >= len(BEFORE)
        assert (one.entry.when, one.entry.seconds) == (NOW * 1000, HOUR)
        assert (one.uuid, one.name, one.host) == (
            GUEST, 'instance-00000007', 'host1')
        assert one.about == ABOUT
        said = pathlib.Path(one.entry.path, 'deleted.json').read_text()
        assert '"when": "2026-09-21T' in said

    def test_nobody_else_reads_it(self, host) -> None:
        umask = os.umask(0)
        try:
            keep(host)
        finally:
            os.umask(umask)
        (one,) = kept(host)
        directory = pathlib.Path(one.entry.path)
        while directory != host.path:
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700
            directory = directory.parent
        assert stat.S_IMODE(os.stat(
            f'{one.entry.path}/deleted.json').st_mode) == 0o600

    def test_nothing_was_written(self, host) -> None:
        for name in os.listdir(host.directory):
            if name.startswith('console.log'):
                pathlib.Path(host.directory, name).write_bytes(b'')
        keep(host)
        assert os.listdir(host.path) == [GUEST]

    def test_there_is_no_directory(self, host) -> None:
        shutil.rmtree(host.directory)
        keep(host)
        assert os.listdir(host.path) == []

    def test_deleted_amid_a_resize(self, host) -> None:
        os.rename(host.directory, host.resized)
        keep(host)
        assert [text(one) for one in kept(host)] == [BEFORE]

    def test_twice_in_a_millisecond(self, host) -> None:
        """A boot fails, nova builds the server here again, and so on."""
        for _ in range(3):
            keep(host)
            host.nova_deletes()
            fill(host.directory)
        found = kept(host)
        assert [text(one) for one in found] == [BEFORE] * 3
        assert len({one.entry.id for one in found}) == 3

    def test_what_waited_to_follow_it(self, host) -> None:
        path = outbox.make(host.directory, departure())
        outbox.fill(path, host.directory)
        host.nova_deletes()
        os.mkdir(host.directory)
        host.live = f'{host.directory}/console.g2.log'
        history.begin_logs([host.live])
        host.write(AFTER)
        keep(host)
        (one,) = kept(host)
        # What it wrote elsewhere in between is not here: export has all.
        assert text(one) == AFTER
        assert {'console.log', 'console.log.0', 'console.g2.log'} < {
            *os.listdir(one.entry.path)}

    def test_a_guest_that_writes_on(self, host) -> None:
        """As of a boot that has failed: nova ends it a moment later."""
        with open(f'{host.directory}/console.log', 'ab') as file:
            keep(host)
            host.nova_deletes()
            file.write(AFTER)
        assert [text(one) for one in kept(host)] == [BEFORE + AFTER]

    def test_a_disk_of_its_own(self, host, caplog,
                               monkeypatch: pytest.MonkeyPatch) -> None:
        """Renames are all that is done."""
        real = os.rename

        def rename(source: str, target: str) -> None:
            if deleted.DIRECTORY in target:
                raise OSError(18, 'Invalid cross-device link', target)
            real(source, target)
        monkeypatch.setattr(os, 'rename', rename)
        keep(host)
        assert 'Invalid cross-device link' in caplog.text
        assert kept(host) == []

    def test_no_guest_waits_for_another(self, host) -> None:
        with host.kept.alone(OTHER):
            keep(host)
        assert len(kept(host)) == 1

    def test_a_host_is_no_path(self, host) -> None:
        for name in ('../other', 'a.b:c', 'x/y'):
            deleted.keep(keeping(host, name=name), host.directory, ABOUT, NOW)
            fill(host.directory)
        assert {one.host for one in kept(host)} == {'../other', 'a.b:c',
                                                    'x/y'}
        assert len(os.listdir(host.path / deleted.DIRECTORY)) == 3


class TestLook:

    @pytest.fixture
    def about(self, host) -> pathlib.Path:
        keep(host)
        return pathlib.Path(kept(host)[0].entry.path, 'deleted.json')

    @pytest.mark.parametrize('data', [
        b'', b'[]', b'{', b'\xff', b'{"name": 7, "why": null}',
        b'[' * 100_000, b'{"name": ' + b'9' * 10_000 + b'}'])
    def test_it_is_not_what_it_should_be(self, host, about, data) -> None:
        about.write_bytes(data)
        (one,) = kept(host)
        assert one.about == deleted.About()
        assert one.name == GUEST
        assert text(one) == BEFORE

    def test_it_is_a_link(self, host, about) -> None:
        other = about.with_name('other')
        about.rename(other)
        about.symlink_to(other)
        assert kept(host)[0].about == deleted.About()

    def test_it_is_long(self, host, about) -> None:
        about.write_text('{"why": "' + 'x' * 5000 + '"}')
        assert len(kept(host)[0].about.why) == 500

    def test_what_else_lies_there(self, host, about) -> None:
        for name in ('lost+found', GUEST, f'{GUEST}.x.1.1', f'{GUEST}.1.1.1.'):
            (about.parents[1] / name).mkdir()
        assert len(kept(host)) == 1
        deleted.clean(keeping(host, seconds=0), NOW)
        assert len(os.listdir(about.parents[1])) == 4


class TestStock:

    def test_nothing_yet(self, host) -> None:
        assert deleted.stock(keeping(host), NOW) == deleted.Stock(
            0, 0, None, 0, '')

    def test_numbers(self, host) -> None:
        for when in (NOW - 60, NOW, NOW - 90):
            deleted.keep(keeping(host), host.directory, ABOUT, when)
            fill(host.directory)
        # Of another host.
        deleted.keep(keeping(host, name='host2'), host.directory, ABOUT, 1)
        found = deleted.stock(keeping(host), NOW)
        assert found == deleted.Stock(
            3, sum(one.entry.size for one in kept(host)
                   if one.host == 'host1'), NOW - 90, 0, '')

    def test_what_could_not_be_put_in_place(self, host) -> None:
        begun = logs.deleted_directory(host.directory)
        os.rename(host.directory, begun)
        os.utime(begun, (NOW, NOW))
        assert deleted.stock(keeping(host), NOW + 59).late == 0
        assert deleted.stock(keeping(host), NOW + 60).late == 1

    @pytest.mark.parametrize('level', [0, 1])
    @pytest.mark.parametrize(('kind', 'fault'), [
        ('file', 'is no directory. Let'), ('link', 'is no directory. Let'),
        ('mode', 'is not for nova-compute to write. Let'),
        ('owner', 'is not for nova-compute to write. Let'),
        ('mount', 'is not of the file system of')])
    def test_it_is_of_no_use(self, host, monkeypatch, level: int, kind: str,
                             fault: str) -> None:
        keep(host)
        path = pathlib.Path(keeping(host).directory)
        if not level:
            path = path.parent
        if kind in ('file', 'link'):
            path.rename(path.with_name('aside'))
            if kind == 'file':
                path.touch()
            else:
                path.symlink_to(path.with_name('aside'))
        elif kind == 'mode':
            path.chmod(0o500)
        else:
            real, field = os.lstat, {'owner': stat.ST_UID,
                                     'mount': stat.ST_DEV}[kind]

            def lstat(asked: str) -> os.stat_result:
                values = list(real(asked))
                if asked == str(path):
                    values[field] += 77
                return os.stat_result(values)
            monkeypatch.setattr(os, 'lstat', lstat)
        found = deleted.stock(keeping(host), NOW)
        assert found.fault.startswith(f'{path} {fault}')
        assert found.count == 0

    @pytest.mark.parametrize(('changes', 'fault'), [
        ({'f_bavail': 0}, 'is full. Free some space.'),
        ({'f_favail': 0}, 'is full. Free some space.'),
        ({'f_flag': os.ST_RDONLY}, 'is mounted read-only. See')])
    def test_its_disk_is_of_no_use(self, host, monkeypatch, changes,
                                   fault: str) -> None:
        system = types.SimpleNamespace(**{
            'f_bavail': 9, 'f_files': 9, 'f_favail': 9, 'f_flag': 0,
            **changes})
        monkeypatch.setattr(os, 'statvfs', lambda _: system)
        assert fault in deleted.stock(keeping(host), NOW).fault

    def test_there_is_none(self, host) -> None:
        shutil.rmtree(host.path)
        assert 'No such file' in deleted.stock(keeping(host), NOW).fault


class TestClean:

    @pytest.fixture(autouse=True)
    def patient(self, monkeypatch) -> None:
        # A disk may be as slow as it likes.
        monkeypatch.setattr(deleted, 'LONGEST_CLEANING', math.inf)

    @pytest.mark.parametrize(('later', 'stays'), [
        (0, True), (HOUR - 1, True), (HOUR, False), (HOUR + 1, False),
        # The clock was set back by a day.
        (-86400, True)])
    def test_the_time_is_over(self, host, later, stays) -> None:
        keep(host)
        assert deleted.clean(keeping(host), NOW + later) == []
        assert bool(kept(host)) == stays
        if later < 0:
            deleted.clean(keeping(host), NOW + later + HOUR)
            assert kept(host) == []

    def test_what_is_configured_now(self, host) -> None:
        keep(host)
        deleted.clean(keeping(host, 2 * HOUR), NOW + HOUR)
        assert len(kept(host)) == 1
        deleted.clean(keeping(host, 0), NOW)
        assert kept(host) == []

    def test_the_oldest_go_first(self, host) -> None:
        for number in range(4):
            deleted.keep(keeping(host), host.directory, ABOUT, NOW + number)
            fill(host.directory)
        # Sizes differ: what is noted of a boot has the inode of its log in it.
        two = sum(one.entry.size + 12288 for one in kept(host)[2:])
        early = deleted.clean(keeping(host, limit=two), NOW + 4)
        assert [entry.when // 1000 - int(NOW) for entry in early] == [0, 1]
        assert [one.entry.when // 1000 - int(NOW) for one in kept(host)] == [
            2, 3]

    def test_another_host(self, host) -> None:
        """It may be there no more; what it meant to keep for longer stays."""
        deleted.keep(keeping(host, name='host2'), host.directory, ABOUT, NOW)
        ours = keeping(host, seconds=0, limit=0)
        deleted.clean(ours, NOW + HOUR - 1)
        assert len(kept(host)) == 1
        deleted.clean(ours, NOW + HOUR)
        assert kept(host) == []

    def test_two_at_the_same_time(self, host, monkeypatch) -> None:
        keep(host)
        real = files.rename

        def rename(source: str, target: str) -> None:
            monkeypatch.setattr(files, 'rename', real)
            deleted.clean(keeping(host, 0), NOW)
            real(source, target)
        monkeypatch.setattr(files, 'rename', rename)
        assert deleted.clean(keeping(host, 0), NOW) == []
        assert os.listdir(keeping(host).directory) == []

    def test_a_disk_that_is_slow(self, host, monkeypatch) -> None:
        for number in range(3):
            deleted.keep(keeping(host), host.directory, ABOUT, NOW + number)
            fill(host.directory)
        monkeypatch.setattr(deleted, 'LONGEST_CLEANING', -1.0)
        deleted.clean(keeping(host, 0), NOW)
        assert len(kept(host)) == 3

    def test_one_that_cannot_be_removed(self, host, monkeypatch) -> None:
        for number in range(2):
            deleted.keep(keeping(host), host.directory, ABOUT, NOW + number)
            fill(host.directory)
        real = files.remove_tree

        def remove_tree(path: str) -> None:
            if f'{int(NOW * 1000)}' in path:
                raise OSError(5, 'Input/output error', path)
            real(path)
        monkeypatch.setattr(files, 'remove_tree', remove_tree)
        with pytest.raises(OSError, match='Input/output'):
            deleted.clean(keeping(host, 0), NOW + 9)
        assert [name.rpartition('.')[2] for name in os.listdir(
            keeping(host).directory)] == ['gone']


@hypothesis.given(
    strategies.lists(strategies.tuples(
        strategies.integers(0, 100), strategies.integers(0, 50_000))),
    strategies.integers(0, 100), strategies.integers(0, 100_000))
def test_what_is_superfluous(made: list[tuple[int, int]], seconds: int,
                             limit: int) -> None:
    found = [deleted.Entry(f'/{number}', GUEST, when * 1000, 7, size)
             for number, (when, size) in enumerate(made)]
    going = deleted.superfluous(found, seconds, limit, 100_000)
    staying = [entry for entry in found if entry not in going]
    assert sum(entry.size + 12288 for entry in staying) <= limit
    assert all(100_000 - entry.when < seconds * 1000 for entry in staying)
    assert going == sorted(going, key=lambda entry: entry.when)
    for entry in going:
        # Nothing goes for something older.
        newer = [e for e in staying if e.when > entry.when]
        same = [e for e in found if e.when == entry.when]
        assert (100_000 - entry.when >= seconds * 1000
                or entry.size + 12288 > limit
                or sum(e.size + 12288 for e in (*newer, *same)) > limit
                or any(e.when > entry.when and e in going for e in found))


# Cut off

def half_kept(host: Host) -> None:
    """An attempt to keep it was killed amid its renames."""
    fill(host.directory)
    begun = logs.deleted_directory(host.directory)
    os.mkdir(begun)
    os.rename(f'{host.directory}/console.log', f'{begun}/console.log')


def half_left(host: Host) -> None:
    """What waits here to follow it elsewhere."""
    fill(host.directory)
    os.rename(f'{host.directory}/console.log.0', f'{host.path}/first')
    path = outbox.make(host.directory, departure())
    os.rename(f'{host.path}/first', f'{path}/console.log.0')


BEGINNINGS = {**STATES, half_kept.__name__: half_kept,
              half_left.__name__: half_left}


def delete(host: Host) -> None:
    """As nova does, whatever becomes of the log."""
    keep(host)
    host.kept.remove(None, GUEST, host.directory)
    host.nova_deletes()
    host.nova_deletes(host.resized)


def look_around(host: Host) -> None:
    """As nova-compute does when it starts, and now and then."""
    for directory in deleted.begun(str(host.path)):
        host.kept.finish_deleted(directory, keeping(host))
    deleted.clean(keeping(host), NOW)


def start_then_delete(host: Host) -> None:
    """nova goes on with what it was doing."""
    look_around(host)
    delete(host)


def read_then_delete(host: Host) -> None:
    """Of a boot that had failed: nova does not, but its user does."""
    look_around(host)
    host.recover()
    delete(host)


NEXT = {f.__name__: f for f in (delete, start_then_delete, read_then_delete)}


def _kill_points(host: Host, operation: Callable[[Host], None]) -> list[str]:
    counted = crash.Machine()
    assert counted.run(lambda: operation(host))
    return counted.calls


@pytest.mark.parametrize('following', NEXT)
@pytest.mark.parametrize('state', BEGINNINGS)
def test_killed(state: str, following: str, tmp_path: pathlib.Path) -> None:
    """Whatever is cut off, there is one log in the end, and it is whole."""
    host = Host(tmp_path / 'count')
    BEGINNINGS[state](host)
    calls = _kill_points(host, delete)
    assert [text(one) for one in kept(host)] == [BEFORE]
    for at in range(len(calls)):
        point = f'killed at {calls[at]}, then {following}'
        host = Host(tmp_path / str(at))
        BEGINNINGS[state](host)
        assert not crash.Machine(at).run(lambda host=host: delete(host))
        host.restart()
        NEXT[following](host)
        look_around(host)
        (one,) = kept(host)
        assert text(one) == BEFORE, point
        assert [noted.time for noted in boot.read(one.entry.path)] == [
            1.0, 2.0], point
        assert os.listdir(host.path) == [deleted.DIRECTORY], point
        shutil.rmtree(host.path)
    print(f'{state}, then {following}: {len(calls)} points')


@pytest.mark.parametrize('state', [*STATES, half_kept.__name__])
def test_killed_and_not_deleted(state: str, tmp_path: pathlib.Path) -> None:
    """The guest whose boot had failed is started here again."""
    host = Host(tmp_path / 'count')
    BEGINNINGS[state](host)
    calls = _kill_points(host, keep)
    for at in range(len(calls)):
        host = Host(tmp_path / str(at))
        BEGINNINGS[state](host)
        assert not crash.Machine(at).run(lambda host=host: keep(host))
        host.restart()
        look_around(host)
        host.start()
        host.write(AFTER)
        already = [text(one) for one in kept(host)]
        assert b''.join([*already, host.text()]) == BEFORE + AFTER, calls[at]
        assert not os.path.exists(logs.deleted_directory(host.directory))
        shutil.rmtree(host.path)


def go_on_deleting(host: Host) -> None:
    host.kept.remove(None, GUEST, host.directory)
    host.nova_deletes()
    host.nova_deletes(host.resized)
    host.restart()
    look_around(host)


@pytest.mark.parametrize('state', BEGINNINGS)
def test_a_disk_that_fails(state: str, tmp_path: pathlib.Path,
                           caplog: pytest.LogCaptureFixture) -> None:
    """The deletion goes on; what is not kept whole is said."""
    host = Host(tmp_path / 'count')
    BEGINNINGS[state](host)
    calls = _kill_points(host, keep)
    number = whole = 0
    for at, kind, lasting in crash.points(calls):
        if kind == 'kill':
            continue
        number += 1
        point = f'{kind} at {calls[at]}{", lasting" if lasting else ""}'
        caplog.clear()
        host = Host(tmp_path / str(number))
        BEGINNINGS[state](host)
        # Nothing is raised.
        assert crash.Machine(at, kind, lasting).run(
            lambda host=host: keep(host))
        go_on_deleting(host)
        found = [text(one) for one in kept(host)]
        if found != [BEFORE]:
            assert 'is not kept as [virtlogd] keep_deleted' in caplog.text, (
                point)
        whole += found == [BEFORE]
        assert os.listdir(host.path) in ([deleted.DIRECTORY], []), point
        shutil.rmtree(host.path)
    # Where a call fails once, most of the time nothing is lost.
    assert whole > number / 3
    print(f'{state}: {number} points, {whole} whole')


@pytest.mark.parametrize('state', BEGINNINGS)
def test_a_disk_that_does_not_tell_what_it_has(
        state: str, tmp_path: pathlib.Path) -> None:
    """For a moment: all is kept."""
    counted = crash.Machine(looks=True)
    host = Host(tmp_path / 'count')
    BEGINNINGS[state](host)
    assert counted.run(lambda: keep(host))
    for at, call in enumerate(counted.calls):
        host = Host(tmp_path / str(at))
        BEGINNINGS[state](host)
        assert crash.Machine(at, 'EIO', looks=True).run(
            lambda host=host: keep(host))
        go_on_deleting(host)
        assert b''.join(text(one) for one in kept(host)) == BEFORE, call
        shutil.rmtree(host.path)
    print(f'{state}: {len(counted.calls)} points')


@pytest.mark.parametrize('name', [
    'console.log', 'console.log.0', 'console.boots'])
@pytest.mark.parametrize('calls', [('lstat',), ('lstat', 'rename')])
def test_a_file_that_its_disk_tells_nothing_of(
        host: Host, name: str, calls: tuple[str, ...],
        monkeypatch: pytest.MonkeyPatch) -> None:
    """For good: it is kept where it can be renamed, and so is the rest."""
    bad = os.lstat(f'{host.directory}/{name}').st_ino
    before = sorted(logs.names(host.directory))
    lstat = os.lstat

    def broken(call: Callable[..., Any]) -> Callable[..., Any]:
        def fails(path: str, *rest: str) -> Any:
            with contextlib.suppress(FileNotFoundError):
                if lstat(path).st_ino == bad:
                    raise OSError(errno.EIO, os.strerror(errno.EIO), path)
            return call(path, *rest)
        return fails

    with monkeypatch.context() as disk:
        for call in calls:
            disk.setattr(os, call, broken(getattr(os, call)))
        keep(host)
    (one,) = kept(host)
    assert sorted({*os.listdir(one.entry.path)} - {'deleted.json'}) == [
        inner for inner in before if inner != name or len(calls) == 1]


def test_cleaning_is_cut_off(tmp_path: pathlib.Path) -> None:
    def begin(name: str) -> Host:
        host = Host(tmp_path / name)
        for when in (NOW - HOUR, NOW):
            fill(host.directory)
            deleted.keep(keeping(host), host.directory, ABOUT, when)
            host.nova_deletes()
        return host

    def clean(host: Host) -> None:
        with contextlib.suppress(OSError):
            deleted.clean(keeping(host), NOW)

    calls = _kill_points(begin('count'), clean)
    assert len(calls) > 4
    for number, (at, kind, lasting) in enumerate(crash.points(calls)):
        host = begin(str(number))
        crash.Machine(at, kind, lasting).run(lambda host=host: clean(host))
        # What is half removed is shown to nobody.
        for one in kept(host):
            assert text(one) == BEFORE
        clean(host)
        assert [(one.entry.when, text(one)) for one in kept(host)] == [
            (NOW * 1000, BEFORE)]
        assert len(os.listdir(keeping(host).directory)) == 1
        shutil.rmtree(host.path)


def test_nobody_takes_what_is_just_being_kept(
        host: Host, caplog: pytest.LogCaptureFixture) -> None:
    """Not another thread, nor another host."""
    begun = logs.deleted_directory(host.directory)
    os.rename(host.directory, begun)
    with files.locked(begun, 0):
        with pytest.raises(BlockingIOError):
            deleted.finish(keeping(host), host.directory, NOW)
        host.kept.finish_deleted(host.directory, keeping(host))
    # Nothing is wrong.
    assert caplog.text == ''
    with host.kept.alone(GUEST):
        other = threading.Thread(target=host.kept.finish_deleted, args=[
            host.directory, keeping(host)])
        other.start()
        other.join()
    assert kept(host) == []
    host.kept.finish_deleted(host.directory, keeping(host))
    assert len(kept(host)) == 1
