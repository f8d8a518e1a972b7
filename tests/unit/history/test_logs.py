# SPDX-License-Identifier: Apache-2.0
"""A guest's logs, renamed from one directory to another."""

import os
import pathlib

import pytest

from virtlogd_driver.console_log import chain, reader
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

    @pytest.mark.parametrize('generation', [1, 2, 3])
    def test_several_generations_of_it(self, directory, generation) -> None:
        """In order all the same."""
        for number in range(generation):
            name = f'console.g{number}.log' if number else 'console.log'
            write(aside(directory), name, b'%d' % number)
        for number in range(3):
            name = f'console.g{number}.log' if number else 'console.log'
            write(directory, name, b'%d' % (generation + number))
        assert logs.recover(str(directory), idle=True)
        live = logs.newest(str(directory))[0]
        assert reader.read_tail(str(directory / live), 99).data == b''.join(
            b'%d' % n for n in range(generation + 3))

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
        older = [name for name in order[:-1] if name in found]
        assert older == order[:-1][len(order) - 1 - len(older):]
        kept = sum((directory / name).stat().st_size for name in older)
        assert kept <= limit + 100
        assert kept >= min(limit, 350)

    def test_a_history(self, directory) -> None:
        write(directory, 'console.g1.history', bytes(100))
        write(directory, 'console.g1.log', b'')
        logs.cut(str(directory), 100)
        assert len(names(directory)) == 2
        logs.cut(str(directory), 0)
        assert names(directory) == ['console.g1.log']

    def test_not_before_the_guest_has_a_log(self, directory) -> None:
        write(directory, 'console.g1.history', bytes(100))
        logs.cut(str(directory), 0)
        assert names(directory) == ['console.g1.history']


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

    def test_what_a_refused_migration_has_begun_is_removed(
            self, directory) -> None:
        write(directory, 'console.log', b'')
        write(directory, 'console.g1.log', b'')
        write(directory, 'console.g2.log', b'x')
        logs.remove_begun(str(directory), {0: 0})
        assert names(directory) == ['console.g2.log', 'console.log']
