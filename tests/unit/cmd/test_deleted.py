# SPDX-License-Identifier: Apache-2.0
"""Kept logs of deleted guests, as the commands list, show and export them."""

import json
import os
import re
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from oslo_config import cfg

from tests.lab.command import Console
from tests.unit import fake_libvirt
from tests.unit.cmd import rotated
from virtlogd_driver import exception
from virtlogd_driver.cmd import deleted
from virtlogd_driver.console_log import chain, log
from virtlogd_driver.console_log.directory import open_directory
from virtlogd_driver.history import boot
from virtlogd_driver.history import deleted as history

GUEST = '6ba7b810-9dad-11d1-80b4-00c04fd430c8'
OTHER = '6ba7b811-9dad-11d1-80b4-00c04fd430c8'
OUTPUT = b'one\ntwo\nthree\nfour\n'


@pytest.fixture
def instances(tmp_path: Path) -> Path:
    path = tmp_path / 'instances'
    path.mkdir()
    return path


@pytest.fixture
def console(instances: Path, tmp_path: Path) -> Iterator[Console]:
    """On a host where one guest, "instance-1", is left."""
    node = tmp_path / 'node.xml'
    node.write_text(fake_libvirt.NODE.format(domains=fake_libvirt.domain_xml(
        fake_libvirt.serial(log=str(tmp_path / 'console.log')),
        name='instance-1')))
    (tmp_path / 'console.log').write_bytes(b'I live\n')
    with Console(f'test://{node}', instances_path=instances) as made:
        yield made


def keep(instances: Path, uuid: str = GUEST, name: str = 'instance-7',
         ago: float = 60, host: str = 'host1', why: str = 'deleted',
         display_name: str = 'web', data: bytes = OUTPUT) -> history.Entry:
    directory = instances / uuid
    directory.mkdir()
    live = directory / 'console.log'
    chain.begin(str(live))
    rotated.make(live, data[:8], data[8:])
    with open_directory(str(directory)) as opened:
        boot.write(str(directory), [
            boot.Boot(1.0, {0: None}),
            boot.Boot(2.0, {0: log.position_at(opened, 'console.log', 6)})])
    entry = history.keep(
        history.Keeping(str(instances), host, 3600, 1 << 20),
        str(directory), history.About(name, display_name, 'project-1', why),
        time.time() - ago)
    directory.rmdir()
    assert entry is not None
    return entry


def found(*names: str, display: str = '') -> list[history.Kept]:
    return [history.Kept(
        history.Entry(f'/kept/{GUEST[:-2]}{number:02}.{number}.9.9',
                      f'{GUEST[:-2]}{number:02}', number, 9, 9),
        history.About(name, display), 'host1')
        for number, name in enumerate(names)]


class TestFind:

    def test_as_a_guest_that_is_there(self) -> None:
        kept = found('instance-1', 'instance-12')
        assert deleted.find(kept, 'instance-1') is kept[0]
        assert deleted.find(kept, kept[1].uuid) is kept[1]
        assert deleted.find(kept, 'instance-12') is kept[1]
        with pytest.raises(exception.AmbiguousGuest, match='beginning of 2'):
            deleted.find(kept, 'inst')

    def test_by_the_servers_own_name(self) -> None:
        kept = found('instance-1', display='web 1')
        assert deleted.find(kept, 'web 1') is kept[0]
        kept = found('instance-1', 'instance-2', display='web 1')
        with pytest.raises(exception.AmbiguousGuest,
                           match=f'were called.*{kept[0].uuid}'):
            deleted.find(kept, 'web 1')
        # libvirt's name is never another's.
        kept = found('instance-1', 'x', display='instance-1')
        assert deleted.find(kept, 'instance-1') is kept[0]

    def test_the_newest_of_several_of_one(self) -> None:
        (old,) = found('x')
        new = history.Kept(history.Entry(
            old.entry.path.replace('.0.', '.1.'), old.uuid, 1, 9, 9),
            old.about, 'host1')
        assert deleted.find([old, new], 'x') is new
        assert deleted.find([old, new], old.uuid[:8]) is new
        assert deleted.find([old, new], old.entry.id) is old

    def test_none(self) -> None:
        with pytest.raises(exception.GuestNotFound,
                           match=r'list --deleted.*keep_deleted'):
            deleted.find([], 'x')


def test_nothing_is_kept(console: Console) -> None:
    assert console.output('list', '--deleted') == b''
    assert json.loads(console.output('list', '--deleted', '--json')) == []
    failed = console.run('show', GUEST)
    assert failed.returncode == 1
    # As before.
    assert b'There is no guest' in failed.stderr
    failed = console.run('show', '--deleted', 'instance-1')
    assert failed.returncode == 1
    assert b'There is no kept log of a guest' in failed.stderr


def test_list(console: Console, instances: Path) -> None:
    old = keep(instances, ago=7200, why='boot failed: \x1b[2J' + 'x' * 100)
    new = keep(instances)
    keep(instances, OTHER, '', display_name='', ago=5)
    lines = console.output('list', '--deleted').decode().splitlines()
    assert re.split('  +', lines[0]) == [
        'NAME', 'SERVER', 'DELETED', 'SIZE', 'UUID', 'PROJECT', 'WHY']
    assert [line.split()[0] for line in lines[1:]] == [
        'instance-7', 'instance-7', '-']
    assert lines[1].endswith('...')
    assert '^[[2J' in lines[1]
    assert '2 h' in lines[1]
    assert old.id in lines[1]
    assert new.id in lines[2]
    assert f' {OTHER} ' in lines[3]
    shown = json.loads(console.output('list', '--deleted', '--json'))
    assert [one['id'] for one in shown] == [old.id, new.id, shown[2]['id']]
    assert shown[1] == {
        'id': new.id, 'name': 'instance-7', 'uuid': GUEST, 'server': 'web',
        'project': 'project-1', 'host': 'host1',
        'deleted': shown[1]['deleted'], 'why': 'deleted', 'size': new.size,
        'path': new.path, 'ports': [0]}
    assert shown[2]['name'] is None
    assert console.output('list', '--deleted', '--names').split() == [
        b'instance-7', GUEST.encode(), OTHER.encode()]


@pytest.mark.parametrize('when', [10**15 - 1, boot.LATEST * 1000])
def test_a_name_with_a_time_that_is_no_date_is_none_of_ours(
        console: Console, instances: Path, when: int) -> None:
    """It takes nothing from the others."""
    good = keep(instances)
    _, _, *rest = good.id.split('.')
    directory = Path(good.path).parent
    (directory / '.'.join([OTHER, str(when), *rest])).mkdir()
    last = [OTHER, str(boot.LATEST * 1000 - 1), *rest]
    (directory / '.'.join(last)).mkdir()
    shown = json.loads(console.output('list', '--deleted', '--json'))
    assert [one['id'] for one in shown] == [good.id, '.'.join(last)]
    assert shown[1]['deleted'].startswith('9892-')
    assert len(console.output('list', '--deleted').splitlines()) == 3


def test_names_are_for_a_shell(console: Console, instances: Path) -> None:
    keep(instances, name='$(touch x)')
    assert console.output('list', '--deleted', '--names').split() == [
        GUEST.encode()]


def test_of_several_hosts(console: Console, instances: Path) -> None:
    keep(instances)
    keep(instances, OTHER, host='host2')
    lines = console.output('list', '--deleted').decode().splitlines()
    assert lines[0].split()[-2:] == ['HOST', 'WHY']
    assert {line.split()[-2] for line in lines[1:]} == {'host1', 'host2'}


@pytest.mark.parametrize('word', [GUEST, '6ba7b810', 'instance-7', 'web'])
def test_show_finds_it(console: Console, instances: Path, word: str) -> None:
    keep(instances)
    done = console.run('show', word)
    assert (done.returncode, done.stdout) == (0, OUTPUT)
    assert b'Guest instance-7 is not here any more.' in done.stderr
    assert b'1 min ago: deleted.' in done.stderr
    done = console.run('show', word, '--deleted')
    assert (done.stdout, done.stderr) == (OUTPUT, b'')


def test_show_some_of_it(console: Console, instances: Path) -> None:
    old = keep(instances, data=b'x' * 20)
    keep(instances, ago=1)
    assert console.output('show', 'web', '--lines', '1') == b'four\n'
    assert console.output('show', 'web', '--bytes', '3') == b'ur\n'
    assert console.output('show', 'web', '--since-boot') == b'four\n'
    assert console.output('show', old.id) == b'x' * 20
    failed = console.run('show', 'web', '--port', '1')
    assert failed.returncode == 1
    assert b'serial port 1 of deleted guest instance-7' in failed.stderr


def test_a_guest_that_is_here_comes_first(console: Console,
                                          instances: Path) -> None:
    keep(instances, name='instance-1')
    assert console.output('show', 'instance-1') == b'I live\n'
    assert console.output('show', 'instance-1', '--deleted') == OUTPUT


def test_libvirt_is_not_needed(instances: Path) -> None:
    keep(instances)
    with Console('nothing:///', instances_path=instances) as console:
        assert console.output('show', 'web', '--deleted') == OUTPUT
        assert len(console.output('list', '--deleted').splitlines()) == 2


@pytest.mark.parametrize('options', [[], ['--deleted']])
def test_export(console: Console, instances: Path, tmp_path: Path,
                options: list[str]) -> None:
    keep(instances, why='boot failed: no port')
    target = tmp_path / 'x.tar.gz'
    done = console.run('export', 'web', str(target), *options)
    assert done.returncode == 0, done.stderr
    with tarfile.open(target) as archive:
        names = archive.getnames()
        assert names == ['console-instance-7/console.log',
                         'console-instance-7/manifest.json']
        read: Any = archive.extractfile
        assert read(names[0]).read() == OUTPUT
        manifest = json.load(read(names[1]))
    assert {manifest[name] for name in (
        'guest', 'uuid', 'state', 'host', 'server', 'project', 'why')} == {
            'instance-7', GUEST, 'deleted', 'host1', 'web', 'project-1',
            'boot failed: no port'}


def test_it_may_not_be_looked_at(instances: Path,
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> list[str]:
        raise PermissionError(13, 'Permission denied', path)
    monkeypatch.setattr(cfg, 'CONF', SimpleNamespace(
        instances_path=str(instances)))
    monkeypatch.setattr(os, 'listdir', refuse)
    with pytest.raises(exception.LogRefused, match='run as root, or as the'):
        deleted.show_list(SimpleNamespace(names=False, json=False))

    def no_guest(word: str) -> None:
        raise exception.GuestNotFound('none')
    host: Any = SimpleNamespace(guest=no_guest)
    with pytest.raises(exception.GuestNotFound, match='none'):
        deleted.guest_or_kept(host, SimpleNamespace(
            guest='x', deleted=False))
