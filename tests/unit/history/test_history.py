# SPDX-License-Identifier: Apache-2.0
"""What a guest wrote stays with it, where nova takes its directory away."""

import contextlib
import dataclasses
import errno
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

import pytest

from tests.unit import fake_libvirt
from tests.unit.history import staged
from tests.unit.history.hosts import (
    ADDRESS,
    BEFORE,
    GUEST,
    THERE,
    Host,
    Pair,
    cold,
    departure,
    finish_revert,
    live,
    refuse,
    to,
    waiting,
    written,
)
from virtlogd_driver.console_log import chain, generation, reader
from virtlogd_driver.history import (
    deleted,
    exclusive,
    files,
    history,
    inbox,
    logs,
    outbox,
)

SINCE = b'since\n'
ANEW = 'was begun anew by another driver'


class Taken(exclusive.Exclusive):
    """Another thread has the logs of every guest."""

    def __init__(self) -> None:
        super().__init__()
        #: For how many seconds it was waited for.
        self.asked: list[float] = []

    @contextlib.contextmanager
    def guest(self, uuid: str, seconds: float) -> Iterator[bool]:
        self.asked.append(seconds)
        yield False


def taken(host: Host) -> Taken:
    guests = Taken()
    host.kept = dataclasses.replace(host.kept, guests=guests)
    return guests


def begin_anew(directory: str, data: bytes = SINCE) -> None:
    """As another driver does, whose log has always the same name."""
    os.makedirs(directory, exist_ok=True)
    pathlib.Path(directory, 'console.log').write_bytes(data)


def put_aside(host: Host) -> None:
    """As a crash in a rebuild, or a host with another driver, leaves it."""
    os.rename(host.directory, logs.aside_directory(host.directory))


@pytest.fixture
def host(pair: Pair) -> Host:
    return pair.source


class TestRecover:

    def test_where_there_is_nothing_to_be_done(self, host) -> None:
        """No other operation is asked, or held up."""
        guests = taken(host)
        host.recover()
        assert guests.asked == []
        assert host.text() == BEFORE

    def test_another_operation_has_the_logs(self, host) -> None:
        """It is not waited for: it sees to them itself."""
        put_aside(host)
        os.mkdir(host.directory)
        guests = taken(host)
        host.recover()
        assert guests.asked == [0]
        assert os.listdir(host.directory) == []

    @pytest.mark.parametrize('idle', [True, False])
    def test_what_was_put_aside_comes_back(self, host, caplog, idle) -> None:
        put_aside(host)
        os.mkdir(host.directory)
        host.recover(idle=idle)
        assert host.text() == BEFORE
        assert caplog.messages == []

    def test_begun_anew_by_another_driver(self, host, caplog) -> None:
        """What it writes is not touched as long as it is written."""
        put_aside(host)
        begin_anew(host.directory)
        host.recover(idle=False)
        assert host.text() == SINCE
        (said,) = caplog.messages
        assert ANEW in said
        assert logs.aside_directory(host.directory) in said
        host.recover()
        assert host.files() == BEFORE + SINCE
        assert len(caplog.messages) == 1

    def test_what_has_come_is_put_in_place(self, host) -> None:
        shutil.rmtree(host.directory)
        os.mkdir(host.directory)
        staged.as_now(pathlib.Path(host.directory), {0: b'then'})
        host.recover()
        assert logs.received(host.directory) == {staged.DEPARTURE: ''}


class TestRebuild:

    def rebuild(self, host: Host, nova: Callable[[], None]) -> None:
        with host.kept.alone(GUEST):
            host.kept.set_aside(None, host.directory)
            nova()
            host.kept.put_back(None, host.directory)

    def test_the_log_outlives_the_directory(self, host) -> None:
        self.rebuild(host, host.nova_deletes)
        assert host.text() == BEFORE
        assert os.listdir(host.path) == [GUEST]

    def test_nova_could_not_delete_it(self, host) -> None:
        self.rebuild(host, lambda: None)
        assert host.text() == BEFORE

    def test_of_a_guest_without_a_log(self, host) -> None:
        """Nothing is made for it."""
        shutil.rmtree(host.directory)
        os.mkdir(host.directory)
        self.rebuild(host, lambda: os.rmdir(host.directory))
        assert os.listdir(host.path) == []

    def test_what_a_crash_has_left_goes_before(self, host) -> None:
        put_aside(host)
        begin_anew(host.directory)
        self.rebuild(host, host.nova_deletes)
        assert host.files() == BEFORE + SINCE

    def test_another_log_has_been_begun_meanwhile(self, host) -> None:
        self.rebuild(host, lambda: begin_anew(host.directory))
        assert host.files() == BEFORE + SINCE


class TestResize:

    def test_to_a_host_with_another_driver(self, host) -> None:
        """On shared storage, where that begins a log of the same name."""
        os.rename(host.directory, host.resized)
        os.mkdir(host.directory)
        host.kept.leave_aside(None, GUEST, host.resized, host.directory)
        begin_anew(host.directory)
        assert logs.names(host.resized) == []
        host.recover()
        assert host.files() == BEFORE + SINCE

    def test_a_guest_without_a_log(self, host) -> None:
        shutil.rmtree(host.directory)
        os.makedirs(host.resized)
        host.kept.leave_aside(None, GUEST, host.resized, host.directory)
        assert os.listdir(host.path) == [os.path.basename(host.resized)]

    def test_it_is_reverted_where_a_log_was_begun_anew(self, host) -> None:
        os.rename(host.directory, host.resized)
        begin_anew(host.directory)
        finish_revert(host)
        assert host.files() == BEFORE + SINCE


class TestVirtlogdIsNotDone:
    """The guest has ended, and its log may be written still."""

    def test_what_it_writes_goes_where_the_file_goes(
            self, pair, virtlogd) -> None:
        log = f'{pair.source.directory}/console.log'
        virtlogd.open.add(log)
        with open(log, 'ab') as late:
            live(pair)
            late.write(b'late')
        assert virtlogd.open == {log}
        assert waiting(pair.source) == []

    @pytest.mark.parametrize('done', [True, False])
    def test_it_knows_a_log_by_where_it_was(self, host, virtlogd, caplog,
                                            done) -> None:
        """nova has renamed the directory meanwhile."""
        caplog.set_level('DEBUG')
        log = f'{host.directory}/console.log'
        os.rename(host.directory, host.resized)
        os.mkdir(host.directory)
        if not done:
            virtlogd.open.add(log)
        host.kept.take_along(None, GUEST, host.resized, host.directory)
        assert host.text() == BEFORE
        assert [log in said for said in caplog.messages
                if 'has closed' in said] == [True] * (not done)

    def test_it_is_not_asked_about_nothing(self, host, virtlogd) -> None:
        shutil.rmtree(host.directory)
        os.mkdir(host.directory)
        host.kept.take_along(None, GUEST, host.directory, host.resized)
        assert virtlogd.calls == 0


class TestLeave:

    def test_it_has_written_nothing(self, host) -> None:
        """The other host is told so."""
        shutil.rmtree(host.directory)
        os.mkdir(host.directory)
        path = host.kept.prepare(None, host.directory, departure())
        assert host.kept.leave(None, GUEST, path, host.directory) == path
        assert os.path.isdir(path)

    def test_it_has_written_nothing_and_has_no_outbox(self, host) -> None:
        shutil.rmtree(host.directory)
        os.mkdir(host.directory)
        assert host.kept.leave(None, GUEST, None, host.directory) is None
        assert os.listdir(host.path) == [GUEST]

    def test_there_was_no_room_for_an_outbox(self, host) -> None:
        """The directory itself becomes it."""
        path = host.kept.leave(None, GUEST, None, host.directory)
        assert os.listdir(host.path) == [os.path.basename(path)]
        assert outbox.is_filled(path)

    def test_what_a_crash_has_left_goes_along(self, host) -> None:
        put_aside(host)
        begin_anew(host.directory)
        path = host.kept.prepare(None, host.directory, departure())
        host.kept.leave(None, GUEST, path, host.directory)
        assert written(path) == BEFORE + SINCE


class TestBeforeDeletion:
    """nova deletes the directory next, whoever has its logs just now."""

    @pytest.fixture(autouse=True)
    def taken(self, host) -> None:
        taken(host)

    def test_left(self, host) -> None:
        path = host.kept.leave(None, GUEST, None, host.directory)
        host.nova_deletes()
        assert written(path) == BEFORE

    def test_left_for_another_driver(self, host) -> None:
        host.kept.leave_aside(None, GUEST, host.directory, host.directory)
        host.nova_deletes()
        assert written(logs.aside_directory(host.directory)) == BEFORE

    def test_reverted(self, host) -> None:
        os.mkdir(host.resized)
        host.kept.bring_back(None, GUEST, host.directory)
        host.nova_deletes()
        assert written(host.resized) == BEFORE

    def test_deleted(self, host) -> None:
        assert host.kept.keep_deleted(
            None, host.directory, TestDeleted.keeping(host),
            deleted.About())
        host.nova_deletes()
        (one,) = deleted.kept(str(host.path))
        assert written(one.entry.path) == BEFORE


class TestNoRoomForAllNames:
    """A new directory has room for one name, on a full disk: a name is given
    again where it was, as nothing else has taken its room."""

    @pytest.fixture
    def full(self, host, monkeypatch) -> None:
        given: list[str] = []
        rename = os.rename

        def renames(here: str, there: str) -> None:
            new = os.path.dirname(there) != os.path.dirname(here) and (
                os.path.dirname(there) != host.directory)
            if new and given:
                raise OSError(errno.ENOSPC, 'No space left on device', there)
            rename(here, there)
            given.extend([there] if new else [])
        monkeypatch.setattr(os, 'rename', renames)

    def test_rebuilt(self, host, full) -> None:
        host.kept.set_aside(None, host.directory)
        host.nova_deletes()
        host.kept.put_back(None, host.directory)
        assert host.files() == BEFORE

    def test_left(self, host, full) -> None:
        path = host.kept.prepare(None, host.directory, departure())
        path = host.kept.leave(None, GUEST, path, host.directory)
        host.nova_deletes()
        assert outbox.paths(str(host.path)) == [path]
        assert written(path) == BEFORE

    def test_a_name_that_is_taken_there(self, host, full) -> None:
        """As a crash has left it: what cannot be given back stays."""
        path = host.kept.prepare(None, host.directory, departure())
        (name,) = logs.newest(host.directory)
        for port in (1, 2):
            chain.begin(os.path.join(
                host.directory, generation.live_name(port, 0)))
        with open(os.path.join(path, name), 'wb') as log:
            log.write(b'earlier')
        host.kept.leave(None, GUEST, path, host.directory)
        with open(os.path.join(path, name), 'rb') as log:
            assert log.read() == b'earlier'

    def test_it_was_copied_already(self, host, full) -> None:
        """Under the name of that departure: it stays where it is."""
        path = host.kept.prepare(None, host.directory, departure())
        outbox.save_state(path, outbox.State(copied=True))
        assert host.kept.leave(None, GUEST, path, host.directory) == path
        assert outbox.load(path) is not None


class TestStay:

    def test_it_stays(self, pair) -> None:
        path = pair.source.kept.prepare(
            None, pair.source.directory, departure())
        assert path is not None
        assert waiting(pair.source) == []
        pair.source.kept.forget(None, path)
        assert os.listdir(pair.source.path) == [GUEST]

    def test_an_outbox_that_has_its_logs(self, host) -> None:
        """It is not forgotten with them."""
        path = host.kept.leave(None, GUEST, None, host.directory)
        host.kept.forget(None, path)
        assert outbox.is_filled(path)


class TestTakeBack:
    """The guest is here again, from a host with nova's own driver."""

    @pytest.fixture
    def host(self, pair: Pair) -> Host:
        refuse(pair.source)
        live(pair)
        os.mkdir(pair.source.directory)
        return pair.source

    @staticmethod
    def take_back(host: Host, *log_names: str) -> None:
        host.kept.take_back(None, GUEST, host.directory, log_names)

    def test_it_goes_on_in_its_log(self, host) -> None:
        """The empty one that nova makes is in nobody's way."""
        begin_anew(host.directory, b'')
        self.take_back(host)
        assert host.text() == BEFORE
        assert waiting(host) == []

    def test_what_finds_no_place_stays_in_the_outbox(
            self, host, monkeypatch) -> None:
        monkeypatch.setattr(logs, 'move', lambda *_: False)
        self.take_back(host)
        (kept,) = waiting(host)
        assert outbox.is_filled(kept.path)

    def test_not_while_something_comes(self, host) -> None:
        """Which goes before it, or after it, as it turns out."""
        os.mkdir(f'{host.directory}/{inbox.MOVING}')
        self.take_back(host)
        assert logs.names(host.directory) == []
        assert len(waiting(host)) == 1

    def test_not_from_this_one(self, host) -> None:
        """What it wrote there comes as well."""
        chain.begin(f'{host.directory}/console.g1.log')
        self.take_back(host, 'console.g1.log')
        assert len(waiting(host)) == 1

    def test_it_has_gone_on_here(self, host) -> None:
        """What it wrote elsewhere in between is not here."""
        begin_anew(host.directory)
        self.take_back(host)
        assert host.text() == SINCE
        assert len(waiting(host)) == 1

    def test_it_had_left_twice(self, host) -> None:
        """Which of both is older would be a guess."""
        begin_anew(host.directory)
        path = host.kept.prepare(None, host.directory, departure())
        host.kept.leave(None, GUEST, path, host.directory)
        self.take_back(host)
        assert logs.names(host.directory) == []
        assert len(waiting(host)) == 2

    def test_virtlogd_has_begun_its_log(self, host) -> None:
        """By whatever name: nothing was written to it yet, and will be."""
        for name in ('console.log', 'console.g1.log'):
            live = pathlib.Path(host.directory, name)
            with live.open('ab') as file:
                self.take_back(host, name)
                file.write(SINCE)
            assert live.read_bytes() == SINCE
            assert len(waiting(host)) == 1
            live.write_bytes(b'')

    def test_it_never_left(self, host) -> None:
        (kept,) = waiting(host)
        shutil.rmtree(kept.path)
        begin_anew(host.directory, b'')
        self.take_back(host)
        assert os.listdir(host.directory) == ['console.log']

    def test_it_is_delivered_meanwhile(self, host, monkeypatch) -> None:
        """By the command, which had the lock."""
        begin_anew(host.directory, b'')

        @contextlib.contextmanager
        def locked(path: str, seconds: float) -> Iterator[None]:
            shutil.rmtree(path)
            yield
        monkeypatch.setattr(files, 'locked', locked)
        self.take_back(host)
        assert os.listdir(host.directory) == ['console.log']


class TestConfirm:
    """nova deletes the directory that the guest has left."""

    def test_the_other_host_has_it(self, pair) -> None:
        cold(pair)
        source = pair.source
        assert source.kept.confirm(None, GUEST, source.directory) is None
        assert logs.names(source.resized) == []
        assert waiting(source) == []

    def test_the_other_host_lacks_it(self, pair) -> None:
        refuse(pair.source)
        cold(pair)
        source = pair.source
        (path,) = outbox.paths(str(source.path))
        assert source.kept.confirm(None, GUEST, source.directory) == path
        assert outbox.is_filled(path)
        assert logs.names(source.resized) == []

    @pytest.mark.parametrize('id', ['0' * 32, 'f' * 32])
    def test_another_departure_waits(self, pair, id) -> None:
        """What it wrote then is not mixed with this."""
        refuse(pair.source)
        cold(pair)
        source = pair.source
        (path,) = outbox.paths(str(source.path))
        begin_anew(source.directory)
        earlier = outbox.make(source.directory, dataclasses.replace(
            departure(), id=id))
        outbox.fill(earlier, source.directory)
        assert source.kept.confirm(None, GUEST, source.directory) == path
        assert outbox.is_filled(path)
        assert logs.names(earlier) == ['console.log']

    def test_there_was_no_room_for_an_outbox(self, host) -> None:
        os.rename(host.directory, host.resized)
        path = host.kept.confirm(None, GUEST, host.directory)
        assert path is not None
        assert outbox.is_filled(path)

    def test_it_has_written_nothing(self, host) -> None:
        shutil.rmtree(host.directory)
        os.mkdir(host.resized)
        assert host.kept.confirm(None, GUEST, host.directory) is None
        assert os.listdir(host.path) == [os.path.basename(host.resized)]


class TestResume:
    """nova-compute was ended while a guest left."""

    @pytest.fixture
    def path(self, host: Host) -> str:
        return outbox.make(host.directory, departure())

    def test_amid_the_renames(self, host, path) -> None:
        """The rest follows, wherever it lay."""
        pathlib.Path(host.directory, 'console.port1.log').write_bytes(b'1')
        os.mkdir(host.resized)
        os.rename(f'{host.directory}/console.log.0',
                  f'{path}/console.log.0')
        os.rename(f'{host.directory}/console.log',
                  f'{host.resized}/console.log')
        assert host.kept.resume(path, departure())
        assert {'console.log', 'console.log.0', 'console.port1.log'} <= set(
            logs.names(path))
        assert logs.names(host.directory) + logs.names(host.resized) == []

    def test_the_guest_is_back_and_writes(self, host, path) -> None:
        """What waits is not mixed with that."""
        outbox.fill(path, host.directory)
        begin_anew(host.directory)
        assert host.kept.resume(path, None)
        assert logs.names(host.directory) == ['console.log']

    def test_it_never_left(self, host, path) -> None:
        assert not host.kept.resume(path, None)
        assert os.listdir(host.path) == [GUEST]
        assert host.text() == BEFORE

    def test_before_the_renames(self, host, path) -> None:
        """Also what an earlier crash has left goes along, in order."""
        put_aside(host)
        begin_anew(host.directory)
        assert host.kept.resume(path, departure())
        assert written(path) == BEFORE + SINCE
        assert logs.names(host.directory) == []

    def test_amid_a_cold_migration(self, host, path) -> None:
        """The logs stay in nova's directory until that is confirmed."""
        os.rename(host.directory, host.resized)
        for left in (departure(), None):
            assert host.kept.resume(path, left)
            assert not outbox.is_filled(path)
        assert 'console.log' in logs.names(host.resized)

    @pytest.fixture
    def old(self, host: Host) -> str:
        """As an earlier version has left it: it does not say where to."""
        path = outbox.path_of(host.directory, 'earlier')
        os.mkdir(path)
        staged.as_old(pathlib.Path(path), {'console.history': b'old'})
        host.nova_deletes()
        return path

    def test_of_an_earlier_version(self, host, old) -> None:
        assert host.kept.resume(old, departure())
        assert outbox.load(old) is not None
        assert logs.names(old) == ['console.log']

    def test_where_to_is_not_known(self, host, old) -> None:
        """It stays until that is."""
        assert not host.kept.resume(old, None)
        assert logs.names(old) == ['console.log']
        assert host.kept.resume(old, departure())

    def test_it_was_just_begun(self, host) -> None:
        path = outbox.path_of(host.directory, outbox.new_id())
        os.mkdir(path)
        assert not host.kept.resume(path, departure())
        assert os.listdir(host.path) == [GUEST]

    def test_it_fails(self, host, path, monkeypatch, caplog) -> None:
        """What is there is carried all the same."""
        def fail(*_: object, **__: object) -> None:
            raise OSError(errno.EIO, 'broken')
        monkeypatch.setattr(logs, 'recover', fail)
        assert host.kept.resume(path, departure())
        assert 'broken' in caplog.text

    def test_its_logs_do_not_get_into_it(self, host, path, monkeypatch,
                                         caplog) -> None:
        """Nothing is carried without them."""
        def fail(*_: object, **__: object) -> None:
            raise OSError(errno.EIO, 'broken')
        monkeypatch.setattr(outbox, 'fill', fail)
        assert not host.kept.resume(path, departure())
        assert 'broken' in caplog.text
        assert host.text() == BEFORE


class TestDeleted:

    @staticmethod
    def keeping(host: Host) -> deleted.Keeping:
        return deleted.Keeping(str(host.path), 'host1', 3600, 1 << 30)

    def keep(self, host: Host) -> bool:
        return host.kept.keep_deleted(
            None, host.directory, self.keeping(host),
            deleted.About(why='shelved'))

    def test_where_it_is_kept_is_said(self, host, caplog) -> None:
        caplog.set_level('INFO')
        assert self.keep(host)
        (one,) = deleted.kept(str(host.path))
        (said,) = caplog.messages
        assert f'{one.entry.path} for 3600 s: shelved' in said

    def test_nothing_was_written(self, host, caplog) -> None:
        """That is no failure."""
        caplog.set_level('INFO')
        shutil.rmtree(host.directory)
        assert self.keep(host)
        assert caplog.messages == []

    def test_it_is_not_kept(self, host, caplog, monkeypatch) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, 'No space left on device')
        monkeypatch.setattr(files, 'make_directory', full)
        assert not self.keep(host)
        (said,) = caplog.messages
        assert 'keep_deleted' in said

    def test_another_operation_has_what_a_crash_has_left(
            self, host) -> None:
        """It is not waited for: there is a next time."""
        os.rename(host.directory, logs.deleted_directory(host.directory))
        guests = taken(host)
        host.kept.finish_deleted(host.directory, self.keeping(host))
        assert guests.asked == [0]
        assert deleted.kept(str(host.path)) == []
        host.restart()
        host.kept.finish_deleted(host.directory, self.keeping(host))
        assert len(deleted.kept(str(host.path))) == 1

    def test_what_lies_beside_its_directory(self, host) -> None:
        """Nothing of another guest's goes with it."""
        other = f'{host.path}/6ba7b811-9dad-11d1-80b4-00c04fd430c8'
        for directory in (host.directory, other):
            outbox.make(directory, dataclasses.replace(
                departure(), guest=os.path.basename(directory)))
            os.mkdir(logs.aside_directory(directory))
        host.kept.remove(None, GUEST, host.directory)
        assert sorted({name[:len(GUEST)] for name in os.listdir(
            host.path) if name != GUEST}) == [os.path.basename(other)]


class TestRevert:

    def test_it_comes_back(self, pair) -> None:
        cold(pair)
        there = pair.destination
        path = there.kept.prepare(None, there.directory, departure({0: 1}))
        there.kept.leave(None, GUEST, path, there.directory)
        there.nova_deletes()
        there.attempt(to(f'{ADDRESS}/{GUEST}_resize'))
        finish_revert(pair.source)
        pair.source.start()
        pair.source.write(b'back\n')
        assert pair.source.text() == BEFORE + THERE + b'back\n'
        assert waiting(there) == []

    def test_it_comes_late(self, pair) -> None:
        cold(pair)
        there = pair.destination
        path = there.kept.prepare(None, there.directory, departure({0: 1}))
        there.kept.leave(None, GUEST, path, there.directory)
        there.nova_deletes()
        finish_revert(pair.source)
        pair.source.start()
        pair.source.write(b'back\n')
        assert pair.source.text() == b'back\n'
        there.attempt(to())
        assert pair.source.text() == BEFORE + THERE + b'back\n'
        assert waiting(there) == []

    def test_it_wrote_nothing_there(self, pair) -> None:
        cold(pair)
        there = pair.destination
        os.truncate(f'{there.directory}/console.g1.log', 0)
        path = there.kept.prepare(None, there.directory, departure({0: 1}))
        there.kept.leave(None, GUEST, path, there.directory)
        there.nova_deletes()
        there.attempt(to(f'{ADDRESS}/{GUEST}_resize'))
        finish_revert(pair.source)
        pair.source.start()
        pair.source.write(b'back\n')
        assert pair.source.text() == BEFORE + b'back\n'


class TestReceive:

    @staticmethod
    def receive(host: Host) -> None:
        host.kept.receive(None, GUEST, host.place())

    @pytest.fixture
    def there(self, host: Host) -> pathlib.Path:
        shutil.rmtree(host.directory)
        path = pathlib.Path(host.directory)
        path.mkdir()
        return path

    def test_another_driver_has_begun_the_log_anew(self, host, there,
                                                   caplog) -> None:
        """Who looks for what was written before is told where it is."""
        begin_anew(host.directory)
        staged.as_now(there, {0: b'then'})
        for _ in range(2):
            self.receive(host)
        (said,) = caplog.messages
        assert ANEW in said
        assert f' {there / "console.history"}; ' in said
        assert (there / 'console.history').read_bytes() == b'then'

    def test_nothing_is_said_where_it_is_in_place(self, host, there,
                                                  caplog) -> None:
        chain.begin(str(there / 'console.g1.log'))
        staged.as_now(there, {0: b'then'})
        self.receive(host)
        assert host.text() == b'then'
        assert caplog.messages == []


class TestErrors:

    def run(self, error: Exception) -> list[str]:
        done = []
        with history.errors_logged(None, 'It is lost'):
            done.append('begun')
            raise error
        return done

    def test_what_may_happen(self, caplog) -> None:
        """It takes a line, and the guest goes on."""
        assert self.run(OSError(errno.EIO, 'broken')) == ['begun']
        (said,) = caplog.records
        assert said.getMessage() == 'It is lost: [Errno 5] broken'
        assert said.exc_info is None

    def test_what_nobody_foresaw(self, caplog) -> None:
        """It is said where it happened, and the guest goes on."""
        assert self.run(ZeroDivisionError()) == ['begun']
        (said,) = caplog.records
        assert said.exc_info is not None


class TestGuestLogs:

    def test_those_that_this_driver_has_named(self) -> None:
        xml = fake_libvirt.domain_xml(''.join(
            f"<serial type='pty'>{log}<target port='{port}'/></serial>"
            for port, log in enumerate((
                "<log file='/i/console.g2.log' append='on'/>", '',
                "<log file='/i/another.log' append='on'/>",
                "<log file='/i/console.port3.log' append='on'/>"))))
        assert history.guest_logs(xml) == {
            0: '/i/console.g2.log', 3: '/i/console.port3.log'}

    def test_where_they_end(self, tmp_path) -> None:
        """What is written from there on is of the next start."""
        paths = {port: str(tmp_path / f'console.port{port}.log')
                 for port in (1, 2, 3)}
        for port, data in ((1, b'before'), (2, b'')):
            pathlib.Path(paths[port]).write_bytes(data)
        found = history.ends(paths)
        assert (found[2], found[3]) == (None, None)
        with open(paths[1], 'ab') as file:
            file.write(b'after')
        assert reader.read_from(paths[1], found[1], 100).data == b'after'


def test_either_all_logs_are_begun_or_none(tmp_path, monkeypatch) -> None:
    paths = [str(tmp_path / f'console.port{n}.g1.log') for n in (1, 2, 3)]
    (tmp_path / 'console.port1.g1.log').write_bytes(b'is there')
    begin = chain.begin

    def fail(path: str) -> None:
        if path == paths[2]:
            raise PermissionError
        begin(path)
    monkeypatch.setattr(chain, 'begin', fail)
    with pytest.raises(PermissionError):
        history.begin_logs(paths)
    assert os.listdir(tmp_path) == ['console.port1.g1.log']
    monkeypatch.undo()
    history.begin_logs(paths)
    assert len(os.listdir(tmp_path)) == 3
