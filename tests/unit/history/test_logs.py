# SPDX-License-Identifier: Apache-2.0
"""A guest's logs are renamed from one directory to another."""

import contextlib
import errno
import itertools
import os
import pathlib

import pytest

from tests.unit.history import crash
from virtlogd_driver.console_log import chain, generation, reader
from virtlogd_driver.history import boot, logs

GUEST = '6ba7b810-9dad-11d1-80b4-00c04fd430c8'


@pytest.fixture
def directory(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / GUEST
    path.mkdir()
    return path


def write(directory: pathlib.Path, name: str, data: bytes) -> None:
    directory.mkdir(exist_ok=True)
    if not (directory / name).exists():
        chain.begin(str(directory / name))
    (directory / name).write_bytes(data)


def aside(directory: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(logs.aside_directory(str(directory)))


def names(directory: pathlib.Path) -> list[str]:
    return sorted(os.listdir(directory))


class TestRecover:

    def test_there_is_nothing(self, directory) -> None:
        assert logs.recover(str(directory), idle=False)
        assert logs.recover(f'{directory}-not-there', idle=True)

    def test_files_are_the_same(self, directory) -> None:
        """What virtlogd has open stays what it is."""
        write(aside(directory), 'console.log', b'now')
        with (aside(directory) / 'console.log').open('ab') as virtlogd:
            assert logs.recover(str(directory), idle=False)
            virtlogd.write(b', later')
        assert (directory / 'console.log').read_bytes() == b'now, later'
        assert not aside(directory).exists()

    def test_while_there_is_no_directory(self, directory) -> None:
        write(aside(directory), 'console.log', b'then')
        directory.rmdir()
        assert logs.recover(str(directory), idle=True)
        assert names(aside(directory)) == ['console.log']

    def test_a_log_of_another_driver(self, directory) -> None:
        """It waits while that is written, and then goes before it."""
        write(aside(directory), 'console.log', b'older')
        write(aside(directory), 'console.log.0', b'oldest')
        boot.write(str(aside(directory)), [boot.Boot(1.0, {})])
        write(directory, 'console.log', b'newer')
        boot.write(str(directory), [boot.Boot(2.0, {})])
        for _ in range(2):
            assert not logs.recover(str(directory), idle=False)
            assert (directory / 'console.log').read_bytes() == b'newer'
            assert len(names(aside(directory))) == 3
        assert logs.live_generation(str(directory), 0) == 1
        assert logs.recover(str(directory), idle=True)
        assert logs.live_generation(str(directory), 0) == 1
        assert reader.read_tail(
            str(directory / 'console.g1.log'), 99).data == b'oldestoldernewer'
        assert [one.time for one in boot.read(str(directory))] == [1.0, 2.0]
        assert not aside(directory).exists()

    @pytest.mark.parametrize('older', [1, 2, 3])
    def test_several_generations_of_it(self, directory, older) -> None:
        """In order all the same."""
        for number in range(older):
            name = f'console.g{number}.log' if number else 'console.log'
            write(aside(directory), name, b'%d' % number)
        for number in range(3):
            name = f'console.g{number}.log' if number else 'console.log'
            write(directory, name, b'%d' % (older + number))
        assert logs.recover(str(directory), idle=True)
        live = logs.newest(str(directory))[0]
        assert reader.read_tail(str(directory / live), 99).data == b''.join(
            b'%d' % n for n in range(older + 3))

    def test_an_empty_log_that_nova_makes(self, directory) -> None:
        write(aside(directory), 'console.log', b'then')
        (directory / 'console.log').touch()
        assert logs.recover(str(directory), idle=True)
        assert names(directory) == ['console.log']
        assert (directory / 'console.log').read_bytes() == b'then'

    @pytest.mark.parametrize(('named', 'together'), [
        (None, False), (['console.log'], False), (['console.g1.log'], True)])
    def test_an_empty_log_that_nova_makes_beside_one_that_is_written(
            self, directory, named, together) -> None:
        write(aside(directory), 'console.log', b'then')
        (directory / 'console.log').touch()
        write(directory, 'console.g1.log', b'now')
        assert logs.recover(str(directory), idle=False,
                            log_names=named) == together
        assert (directory / 'console.log').read_bytes() == (
            b'then' if together else b'')

    def test_novas_empty_log_beside_one_that_was_begun(
            self, directory) -> None:
        """That the chain is whole stays known."""
        aside(directory).mkdir()
        chain.begin(str(aside(directory) / 'console.log'))
        (directory / 'console.log').touch()
        assert logs.recover(str(directory), idle=True)
        assert logs.is_first(str(directory / 'console.log'))

    def test_an_empty_log_that_was_just_rotated_is_not_novas(
            self, directory) -> None:
        write(aside(directory), 'console.log', b'then')
        write(directory, 'console.log.0', b'now')
        (directory / 'console.log').touch()
        assert logs.recover(str(directory), idle=True)
        live = logs.newest(str(directory))[0]
        assert live == 'console.g1.log'
        assert reader.read_tail(
            str(directory / live), 99).data == b'thennow'

    def test_what_was_begun_for_another_host_is_in_nobodys_way(
            self, directory) -> None:
        """Nothing was ever written to it; the guest writes the other one."""
        write(aside(directory), 'console.log', b'then')
        chain.begin(str(aside(directory) / 'console.g1.log'))
        chain.begin(str(directory / 'console.g1.log'))
        assert logs.recover(str(directory), idle=False)
        assert names(directory) == ['console.g1.log', 'console.log']

    @pytest.mark.parametrize(('named', 'together'), [
        (None, False), (['console.g1.log'], False), ([], True)])
    def test_what_was_begun_here_and_the_guest_has_no_log(
            self, directory, named, together) -> None:
        """virtlogd may have the file that a domain names, empty or not."""
        write(aside(directory), 'console.g1.log', b'then')
        chain.begin(str(directory / 'console.g1.log'))
        assert logs.recover(str(directory), idle=False,
                            log_names=named) == together
        assert (directory / 'console.g1.log').read_bytes() == (
            b'then' if together else b'')

    def test_other_ports_do_not_wait(self, directory) -> None:
        write(aside(directory), 'console.log', b'older')
        write(aside(directory), 'console.port1.log', b'port 1')
        write(directory, 'console.log', b'newer')
        assert not logs.recover(str(directory), idle=False)
        assert names(directory) == ['console.log', 'console.port1.log']

    def test_what_a_later_start_appends_to(self, directory) -> None:
        """Where the older ones cannot be brought back for now."""
        write(aside(directory), 'console.g2.log', b'older')
        assert logs.live_generation(str(directory), 0) == 3
        write(directory, 'console.g3.log', b'newer')
        assert logs.live_generation(str(directory), 0) == 3
        assert logs.recover(str(directory), idle=False)
        assert reader.read_tail(
            str(directory / 'console.g3.log'), 99).data == b'oldernewer'

    def test_of_an_earlier_version(self, directory) -> None:
        """It copied: what it has set aside is received."""
        (aside(directory) / 'console.moving').mkdir(parents=True)
        (aside(directory) / 'console.moving/x').touch()
        assert logs.recover(str(directory), idle=True)
        assert names(directory / 'console.moving') == ['x']
        assert not aside(directory).exists()


    def test_one_that_was_deleted_and_is_there_again(
            self, directory) -> None:
        """As nova restores it; why it was kept means nothing then."""
        kept = pathlib.Path(logs.deleted_directory(str(directory)))
        write(kept, 'console.log', b'then')
        (kept / 'deleted.json').touch()
        write(pathlib.Path(logs.resized(str(directory))), 'console.g1.log',
              b'resized')
        assert logs.recover(str(directory), idle=True)
        assert names(directory) == ['console.g1.log', 'console.log']
        assert names(directory.parent) == [GUEST, f'{GUEST}_resize']

    def test_what_is_kept_is_not_removed_before_it_is_here(
            self, directory) -> None:
        """Three drivers, or one that was removed and is back, say."""
        write(pathlib.Path(logs.deleted_directory(str(directory))),
              'console.log', b'first')
        write(aside(directory), 'console.log.0', b'se')
        write(aside(directory), 'console.log', b'cond')
        write(directory, 'console.log', b'third')
        assert not logs.recover(str(directory), idle=False)
        assert len(names(directory.parent)) == 3
        assert logs.recover(str(directory), idle=True)
        assert names(directory.parent) == [GUEST]
        assert b''.join(
            (directory / name).read_bytes() for name in (
                'console.log', 'console.g1.log.0', 'console.g1.log',
                'console.g2.log')) == b'firstsecondthird'

    @pytest.mark.parametrize('present', [
        ['console.log.1', 'console.log.0', 'console.log'],
        ['console.log.0', 'console.log', 'console.g1.log.0',
         'console.g1.log']])
    def test_it_stays_in_order_at_each_point(
            self, directory, monkeypatch, present) -> None:
        write(aside(directory), 'console.log', b'older')
        for number, name in enumerate(present):
            write(directory, name, b'%d' % number)
        rename, orders = os.rename, []

        def look(here: str, there: str) -> None:
            rename(here, there)
            found = names(directory)
            orders.append(b''.join(
                (directory / name).read_bytes()
                for number in range(9)
                for name in generation.files_of(found, 0, number)))
        monkeypatch.setattr(os, 'rename', look)
        assert logs.recover(str(directory), idle=True)
        assert len(orders) > len(present)
        assert {order.removeprefix(b'older') for order in orders} == {
            b''.join(b'%d' % number for number in range(len(present)))}

    @pytest.mark.parametrize('older', [
        ['console.log'], ['console.log.0', 'console.log'],
        ['console.log', 'console.g1.log']])
    @pytest.mark.parametrize('present', [
        ['console.log.1', 'console.log.0', 'console.log'],
        ['console.log.0', 'console.log', 'console.g1.log.0',
         'console.g1.log'],
        ['console.log.0', 'console.log', 'console.g4.log'],
        ['console.log', 'console.g1.log', 'console.g2.log']])
    def test_a_crash_at_each_point(self, tmp_path, older, present) -> None:
        """What was written first is first, whoever goes on."""
        expected = ''.join([*older, *present]).encode()
        for at in itertools.count():
            directory = tmp_path / str(at) / GUEST
            directory.mkdir(parents=True)
            for path, listed in ((aside(directory), older),
                                 (directory, present)):
                for name in listed:
                    write(path, name, name.encode())
                    (path / name).chmod(0o600)
                    # In one tick of the clock.
                    os.utime(path / name, (1, 1))
            over = crash.Machine(at).run(
                lambda directory=directory: logs.recover(
                    str(directory), idle=True))
            assert logs.recover(str(directory), idle=True)
            found = names(directory)
            assert b''.join(
                (directory / name).read_bytes() for number in range(19)
                for name in generation.files_of(found, 0, number)
            ) == expected, at
            # Nobody joins what is beyond a number that is missing.
            numbers = sorted(generation.generations(found, 0))
            assert 'console.g4.log' in present or (
                numbers == list(range(len(numbers)))), at
            if over:
                break

    @pytest.mark.parametrize(('begun', 'rest', 'before'), [
        # The guest went on in a log that could not be begun.
        (False, (1, 2), (3, 4)), (False, (1, 9), (3, 4)),
        (False, (5, 9), (3, 7)),
        (True, (1, 1), (1, 1)), (True, (5, 6), (3, 4))])
    def test_a_move_that_was_cut_off_is_none(
            self, directory, begun, rest, before) -> None:
        """The oldest are here, and the guest has gone on in another log."""
        for path, name, time in (
                (directory, 'console.log.3', rest[0]),
                (directory, 'console.log.2', rest[1]),
                (aside(directory), 'console.log.1', before[0]),
                (aside(directory), 'console.log', before[1])):
            write(path, name, name.encode())
            os.utime(path / name, (time, time))
        write(directory, 'console.g1.log.1', b'b')
        (directory / 'console.g1.log').write_bytes(b'a')
        if not begun:
            (directory / 'console.g1.log.1').chmod(0o600)
        assert logs.recover(str(directory), idle=True)
        assert names(directory) == [
            'console.g1.log', 'console.g1.log.1', 'console.log',
            'console.log.1', 'console.log.2', 'console.log.3']

    def test_one_that_need_not_make_room(self, directory) -> None:
        write(aside(directory), 'console.log', b'older')
        write(directory, 'console.log', b'newer')
        write(directory, 'console.g5.log', b'now')
        assert logs.recover(str(directory), idle=True)
        assert names(directory) == [
            'console.g1.log', 'console.g5.log', 'console.log']
        assert (directory / 'console.g1.log').read_bytes() == b'newer'

    @pytest.mark.parametrize('live', ['console.g1.log', 'console.g2.log'])
    def test_two_histories_of_one_name(self, directory, live) -> None:
        """What came to one directory, and later to the other."""
        write(aside(directory), 'console.g1.history', b'older')
        write(directory, 'console.g1.history', b'newer')
        write(directory, live, b'now')
        assert not logs.recover(str(directory), idle=False)
        assert logs.recover(str(directory), idle=True)
        assert names(directory) == [
            'console.g1.history', 'console.g2.history', 'console.g2.log']
        assert (directory / 'console.g1.history').read_bytes() == b'older'

    @pytest.mark.parametrize('left', [
        ['console.log.1', 'console.log.0', 'console.g1.log'],
        ['console.log.1', 'console.g1.log.0', 'console.g1.log']])
    def test_a_crash_amid_giving_it_another_number(
            self, directory, left) -> None:
        """It stays one generation."""
        write(aside(directory), 'console.log', b'older')
        for number, name in enumerate(left):
            write(directory, name, b'%d' % number)
        write(aside(directory), left[0], b'oldest')
        assert logs.recover(str(directory), idle=True)
        assert names(directory) == [
            'console.g1.log', 'console.g1.log.0', 'console.g1.log.1',
            'console.log', 'console.log.1']
        assert [(directory / f'console.g1.log{suffix}').read_bytes()
                for suffix in ('.1', '.0', '')] == [b'0', b'1', b'2']

    def test_what_is_together_last_does_not_hide_what_is_not(
            self, directory) -> None:
        write(pathlib.Path(logs.resized(str(directory))), 'console.log',
              b'older')
        write(aside(directory), 'console.port1.log', b'port 1')
        write(directory, 'console.log', b'newer')
        assert not logs.recover(str(directory), idle=False)
        assert aside(directory).exists()

    def test_of_an_earlier_version_where_something_is_coming(
            self, directory) -> None:
        for path in (aside(directory), directory):
            (path / 'console.moving').mkdir(parents=True)
            (path / 'console.moving' / path.name).touch()
        assert logs.recover(str(directory), idle=True)
        assert names(directory / 'console.moving') == [GUEST]
        assert not aside(directory).exists()


class TestNames:

    def test_what_belongs_to_a_log(self, directory) -> None:
        """In the order of a move: what is said of the logs comes last."""
        for name in ('console.received', 'console.boots', 'console.log',
                     'console.port1.g2.history', 'console.moving', 'disk'):
            (directory / name).touch()
        assert logs.names(str(directory)) == [
            'console.log', 'console.port1.g2.history', 'console.boots',
            'console.received']
        assert logs.ports(str(directory)) == [0, 1]
        logs.remove_all(str(directory))
        assert names(directory) == ['disk']

    def test_beside_an_instance_directory(self, directory) -> None:
        for of in (logs.aside_directory, logs.resized,
                   logs.deleted_directory, str):
            assert logs.instance_directory(of(str(directory))) == (
                str(directory))

    def test_how_a_log_has_begun(self, directory) -> None:
        live = str(directory / 'console.log')
        assert not logs.is_as_begun(live)
        assert not logs.is_first(live)
        chain.begin(live)
        assert logs.is_as_begun(live)
        assert logs.is_first(live)
        (directory / 'console.log').write_bytes(b'x')
        assert not logs.is_as_begun(live)
        assert logs.is_first(live)
        (directory / 'console.g1.log').touch()
        assert not logs.is_as_begun(str(directory / 'console.g1.log'))

    def test_an_empty_log_that_nova_makes_was_not_written(
            self, directory) -> None:
        """But where it is the only one: another driver's guest may be."""
        (directory / 'console.log').touch()
        assert logs.written(str(directory)) == ['console.log']
        assert logs.generations(str(directory), 0) == [0]
        write(directory, 'console.g1.log', b'x')
        write(directory, 'console.g1.log.0', b'x')
        write(directory, 'console.g1.history', b'x')
        write(directory, 'console.port1.log', b'x')
        assert logs.generations(str(directory), 0) == [1]
        assert logs.in_use(logs.newest(str(directory))) == {0: 1, 1: 0}
        assert logs.in_use(['elsewhere.log']) == {}


class TestMove:

    @pytest.mark.parametrize(('failures', 'fails'), [(3, False), (4, True)])
    def test_what_cannot_be_renamed_is_tried_after_the_others(
            self, directory, tmp_path, monkeypatch, failures, fails) -> None:
        """Twice at once, and twice after them."""
        for name in ('console.log', 'console.log.0'):
            write(directory, name, b'x')
        there = tmp_path / 'there'
        there.mkdir()
        rename, tried = os.rename, []

        def failing(here: str, to: str) -> None:
            tried.append(os.path.basename(here))
            if (tried[-1] == 'console.log'
                    and tried.count('console.log') <= failures):
                raise OSError(errno.EIO, os.strerror(errno.EIO), here)
            rename(here, to)
        monkeypatch.setattr(os, 'rename', failing)
        with (pytest.raises(OSError, match='Input/output error')
              if fails else contextlib.nullcontext()):
            assert logs.move(str(directory), str(there))
        assert tried == ['console.log', 'console.log', 'console.log.0',
                         'console.log', 'console.log']
        assert names(there) == [
            'console.log', 'console.log.0'][fails:]

    def test_to_the_disk(self, directory, monkeypatch) -> None:
        synced = []
        monkeypatch.setattr(os, 'fsync', lambda fd: synced.append(
            os.readlink(f'/proc/self/fd/{fd}')))
        write(directory, 'console.log', b'then')
        aside(directory).mkdir()
        assert logs.move(str(directory), str(aside(directory)))
        assert set(synced) == {str(directory), str(aside(directory))}
        synced.clear()
        assert logs.move(str(directory), str(aside(directory)))
        assert synced == []

    def test_what_is_in_the_way_is_tried_after_the_rest(
            self, directory, monkeypatch) -> None:
        write(directory, 'console.log', b'then')
        write(directory, 'console.port1.log', b'port 1')
        aside(directory).mkdir()
        rename, failed = os.rename, []

        def once(here: str, there: str) -> None:
            if not failed:
                failed.append(here)
                raise OSError(5, 'broken')
            rename(here, there)
        monkeypatch.setattr(os, 'rename', once)
        assert logs.move(str(directory), str(aside(directory)))
        assert names(directory) == []

    def test_what_stays_is_said_and_holds_up_nothing(
            self, directory, monkeypatch) -> None:
        write(directory, 'console.g1.log', b'then')
        write(directory, 'console.log', b'then')
        write(directory, 'console.port1.log', b'port 1')
        aside(directory).mkdir()
        rename = os.rename

        def broken(here: str, there: str) -> None:
            if not here.endswith('port1.log'):
                raise OSError(5, here)
            rename(here, there)
        monkeypatch.setattr(os, 'rename', broken)
        with pytest.raises(OSError, match=r'console\.g1\.log'):
            logs.move(str(directory), str(aside(directory)))
        assert names(aside(directory)) == ['console.port1.log']

    def test_what_is_said_of_both(self, directory) -> None:
        write(directory, 'console.g1.log', b'now')
        write(aside(directory), 'console.log', b'then')
        for path, time in ((directory, 2.0), (aside(directory), 1.0)):
            boot.write(str(path), [boot.Boot(time, {})])
            logs.note_received(str(path), {f'{time}': ''})
        assert logs.move(str(aside(directory)), str(directory))
        assert [one.time for one in boot.read(str(directory))] == [1.0, 2.0]
        assert logs.received(str(directory)) == {'1.0': '', '2.0': ''}
        assert names(aside(directory)) == []

    def test_it_stays_with_the_logs(self, directory) -> None:
        write(directory, 'console.log', b'now')
        write(aside(directory), 'console.log', b'then')
        for path in (directory, aside(directory)):
            boot.write(str(path), [boot.Boot(1.0, {})])
            logs.note_received(str(path), {'x': ''})
        assert not logs.move(str(aside(directory)), str(directory))
        assert len(names(aside(directory))) == 3

    def test_from_several_directories(self, directory) -> None:
        kept = directory.parent / 'kept'
        kept.mkdir()
        write(directory, 'console.log', b'now')
        write(aside(directory), 'console.log', b'then')
        logs.gather([str(directory), str(aside(directory))], str(kept))
        assert reader.read_tail(
            str(kept / 'console.g1.log'), 99).data == b'thennow'

    def test_one_of_them_fails(self, directory, monkeypatch) -> None:
        kept = directory.parent / 'kept'
        kept.mkdir()
        write(directory, 'console.g1.log', b'now')
        write(aside(directory), 'console.log', b'then')
        rename = os.rename

        def broken(here: str, there: str) -> None:
            if here.startswith(f'{directory}/'):
                raise OSError(5, 'broken')
            rename(here, there)
        monkeypatch.setattr(os, 'rename', broken)
        with pytest.raises(OSError, match='broken'):
            logs.gather([str(directory), str(aside(directory))], str(kept))
        assert names(kept) == ['console.log']


class TestSetAside:

    def fill(self, directory: pathlib.Path) -> None:
        write(directory, 'console.log', b'then')
        (directory / 'disk').touch()
        (directory / 'console.moving').mkdir()

    def test_the_logs_alone(self, directory) -> None:
        self.fill(directory)
        logs.set_aside(str(directory))
        assert names(aside(directory)) == ['console.log']
        assert names(directory) == ['console.moving', 'disk']

    @pytest.mark.parametrize('made', [False, True])
    def test_there_is_no_room(self, directory, monkeypatch, made) -> None:
        """The directory as a whole; nova would have deleted the rest."""
        self.fill(directory)
        if made:
            aside(directory).mkdir()
            (aside(directory) / 'other').touch()

        def full(*_: object) -> None:
            raise OSError(28, 'full')
        monkeypatch.setattr(logs, 'move', full)
        monkeypatch.setattr(os, 'mkdir', full)
        synced = []
        monkeypatch.setattr(os, 'fsync', lambda fd: synced.append(
            os.readlink(f'/proc/self/fd/{fd}')))
        logs.set_aside(str(directory))
        assert names(directory.parent) == [f'{GUEST}_console']
        assert names(aside(directory)) == ['console.log', 'console.moving']
        assert synced == [str(directory.parent)]

    @pytest.mark.parametrize('there', [['console.log'], []])
    def test_half_of_it_is_aside(self, directory, monkeypatch,
                                 there) -> None:
        """That is not removed, to make room for the rest."""
        self.fill(directory)
        (directory / 'console.log').rename(directory / 'x')
        aside(directory).mkdir()
        for name in there:
            write(directory, 'console.g1.log', b'now')
            write(aside(directory), name, b'then')

        def full(*_: object) -> None:
            raise OSError(28, 'full')
        monkeypatch.setattr(logs, 'move', full)
        with pytest.raises(OSError, match='full'):
            logs.set_aside(str(directory))
        assert names(aside(directory)) == there
        assert directory.exists()


class TestReceived:

    def test_what_is_noted_is_read(self, directory) -> None:
        path = str(directory)
        assert logs.received(path) == {}
        logs.note_received(path, {'a': '', 'b': 'why not'})
        logs.note_received(path, {'c': 'x' * 201, 'a': 'again'})
        assert logs.received(path) == {
            'a': 'again', 'b': 'why not', 'c': 'x' * 200}
        assert (directory / 'console.received').read_bytes().startswith(
            b'a again\nb why not\n')

    def test_the_newest_hundred(self, directory) -> None:
        for number in range(101):
            logs.note_received(str(directory), {str(number): ''})
        assert list(logs.received(str(directory))) == [
            str(number) for number in range(1, 101)]

    def test_as_much_as_is_noted_at_most(self, directory) -> None:
        logs.note_received(str(directory), {
            f'{number:032}': 'x' * 200 for number in range(100)})
        assert len(logs.received(str(directory))) == 100

    @pytest.mark.parametrize('data', [b'\xff\n', b'\xff' * 65_536])
    def test_what_another_has_put_there(self, directory, data) -> None:
        (directory / 'console.received').write_bytes(data)
        assert len(logs.received(str(directory))) == 1

    def test_a_reason_that_another_gives_is_one_line(
            self, directory) -> None:
        """Of which a terminal obeys nothing: it goes into the log."""
        (directory / 'console.received').write_bytes(
            b'a \x1b[2Jno\xff' + b'x' * 1000)
        (reason,) = logs.received(str(directory)).values()
        assert reason.startswith('?[2Jno')
        assert len(reason) == 200
        assert reason.isprintable()

    def test_no_file_of_ours(self, directory) -> None:
        (directory / 'console.received').write_bytes(bytes(65_537))
        assert logs.received(str(directory)) == {}
        (directory / 'console.received').unlink()
        (directory / 'console.received').mkdir()
        assert logs.received(str(directory)) == {}


class TestCut:

    def fill(self, directory: pathlib.Path) -> None:
        for name, size in (('console.log.1', 100), ('console.log.0', 100),
                           ('console.log', 50), ('console.g1.log', 0),
                           ('console.g2.log', 100), ('console.g3.log', 500)):
            write(directory, name, bytes(size))

    @pytest.mark.parametrize(('limit', 'left'), [
        (1000, 6), (251, 6), (250, 5), (150, 4), (149, 4), (1, 2), (0, 1)])
    def test_by_whole_files_the_oldest_first(self, directory, limit,
                                             left) -> None:
        """None that has a byte within the bound, nor the one in use."""
        self.fill(directory)
        logs.cut(str(directory), limit)
        order = ['console.log.1', 'console.log.0', 'console.log',
                 'console.g1.log', 'console.g2.log', 'console.g3.log']
        found = set(names(directory))
        assert 'console.g3.log' in found
        assert len(found) == left
        older = [name for name in order[:-1] if name in found]
        assert older == order[:-1][len(order) - 1 - len(older):]
        kept = sum((directory / name).stat().st_size for name in older)
        assert kept <= limit + 100
        assert kept >= min(limit, 350)

    @pytest.mark.parametrize('live', ['console.log', 'console.g1.log'])
    def test_a_history(self, directory, live) -> None:
        write(directory, live.replace('.log', '.history'), bytes(100))
        write(directory, live, b'')
        write(directory, f'{live}.0', b'x')
        logs.cut(str(directory), 100)
        assert len(names(directory)) == 3
        logs.cut(str(directory), 0)
        assert names(directory) == [live, f'{live}.0']

    def test_not_before_the_guest_has_a_log(self, directory) -> None:
        write(directory, 'console.g1.history', bytes(100))
        write(directory, 'console.port1.log', bytes(100))
        write(directory, 'console.port1.g1.log', b'')
        logs.cut(str(directory), 0)
        assert names(directory) == [
            'console.g1.history', 'console.port1.g1.log']


class TestNext:

    @pytest.mark.parametrize('data', [b'', b'x'])
    def test_another_host_may_write_what_there_is(self, directory,
                                                  data) -> None:
        """Also where nothing was written yet."""
        write(directory, 'console.log', data)
        write(directory, 'console.port1.g2.log', data)
        logs.begin_next(str(directory))
        assert names(directory) == [
            'console.g1.log', 'console.log', 'console.port1.g2.log',
            'console.port1.g3.log']

    def test_a_new_guest(self, directory) -> None:
        logs.begin_next(str(directory))
        assert names(directory) == []

    def test_a_separate_directory_starts_with_generation_1(
            self, directory) -> None:
        here = f'{directory}/console.port1.g2.log'
        assert logs.next_log(str(directory), 1, here, shared=False) == (
            f'{directory}/console.port1.g1.log')

    @pytest.mark.parametrize('begun', [False, True])
    def test_a_shared_directory_goes_on(self, directory, begun) -> None:
        write(directory, 'console.g1.log', b'x')
        if begun:
            write(directory, 'console.g2.log', b'')
        there = logs.next_log(str(directory), 0,
                              f'{directory}/console.g1.log', shared=True)
        assert there == f'{directory}/console.g2.log'
        assert logs.is_as_begun(there)

    def test_an_empty_log_that_is_written_here_is_not_taken(
            self, directory) -> None:
        write(directory, 'console.g1.log', b'')
        assert logs.next_log(
            str(directory), 0, f'{directory}/console.g1.log',
            shared=True) == f'{directory}/console.g2.log'

    def test_a_generation_that_a_failed_migration_has_begun(
            self, directory) -> None:
        """It is taken again, where nothing was written to it."""
        assert logs.next_generation(str(directory), 0) == 1
        write(directory, 'console.log', b'')
        assert logs.next_generation(str(directory), 0) == 1
        write(directory, 'console.g4.log', b'')
        assert logs.next_generation(str(directory), 0) == 4
        write(directory, 'console.g4.log', b'x')
        assert logs.next_generation(str(directory), 0) == 5
        assert logs.next_generation(str(directory), 1) == 1

    def test_a_port_that_has_no_log_here(self, directory) -> None:
        for shared in (False, True):
            assert logs.next_log(str(directory), 1, None, shared) == (
                f'{directory}/console.port1.g1.log')
            assert names(directory) == (
                ['console.port1.g1.log'] if shared else [])

    def test_a_log_of_another_name_is_written_here(self, directory) -> None:
        assert logs.next_log(
            '/else', 0, f'{directory}/guest.log', shared=True) == (
                f'{directory}/console.g1.log')

    def test_where_the_next_cannot_be_begun(self, directory) -> None:
        """The guest moves all the same."""
        assert logs.next_log(
            f'{directory}/gone', 0, None, shared=True) == (
                f'{directory}/gone/console.g1.log')

    def test_what_is_beside_counts(self, directory) -> None:
        assert logs.live_generation(str(directory), 0) == 0
        write(directory, 'console.g3.log', b'x')
        for number, of, expected in (
                (2, logs.resized, 3), (3, logs.deleted_directory, 4),
                (5, logs.aside_directory, 6)):
            write(pathlib.Path(of(str(directory))),
                  f'console.g{number}.log', b'x')
            assert logs.live_generation(str(directory), 0) == expected
        assert logs.live_generation(str(directory), 1) == 0

    def test_what_a_refused_migration_has_begun_is_removed(
            self, directory) -> None:
        write(directory, 'console.log', b'')
        write(directory, 'console.g1.log', b'')
        write(directory, 'console.g2.log', b'x')
        for name in ('console.port1.log', 'console.port1.g1.log'):
            write(directory, name, b'')
        logs.remove_begun(str(directory), {0: 0})
        assert names(directory) == ['console.g2.log', 'console.log',
                                    'console.port1.log']
