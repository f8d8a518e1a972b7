# SPDX-License-Identifier: Apache-2.0
"""root uses only those paths of others that are safe."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit import descriptors
from virtlogd_driver import safe_path

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason='files of another user are made by root')
#: A user and a group that are not root's.
OTHER = 1234


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """A configuration file of root's, in a directory of root's."""
    path = tmp_path / 'etc' / 'nova.conf'
    path.parent.mkdir(mode=0o755)
    path.touch(mode=0o644)
    return path


def _as_it_is(conf: Path) -> Path:
    return conf


def _read_by_a_group(conf: Path) -> Path:
    os.chown(conf, -1, OTHER)
    conf.chmod(0o640)
    return conf


def _link_of_roots(conf: Path) -> Path:
    (conf.parent / 'link').symlink_to('nova.conf')
    return conf.parent / 'link'


def _directory_link_of_roots(conf: Path) -> Path:
    (conf.parent.parent / 'link').symlink_to(conf.parent)
    return conf.parent.parent / 'link' / conf.name


def _in_a_sticky_directory(conf: Path) -> Path:
    conf.parent.chmod(0o1777)
    return conf


def _spelled_otherwise(conf: Path) -> Path:
    return Path(f'{conf.parent}/.//../etc/{conf.name}')


@needs_root
@pytest.mark.parametrize('make', [
    _as_it_is, _read_by_a_group, _link_of_roots, _directory_link_of_roots,
    _in_a_sticky_directory, _spelled_otherwise])
def test_what_is_of_root(conf: Path, make: Callable[[Path], Path]) -> None:
    safe_path.check_of_root(str(make(conf)))


@needs_root
def test_a_directory_of_root(conf: Path) -> None:
    safe_path.check_of_root(f'{conf.parent}/')
    # Nobody can exchange what is in it, but add to it.
    _in_a_sticky_directory(conf)
    with pytest.raises(safe_path.Untrusted):
        safe_path.check_of_root(f'{conf.parent}/')


def _owner(conf: Path) -> Path:
    os.chown(conf, OTHER, 0)
    return conf


def _group(conf: Path) -> Path:
    os.chown(conf, 0, OTHER)
    conf.chmod(0o660)
    return conf


def _world(conf: Path) -> Path:
    conf.chmod(0o602)
    return conf


def _directory_of_another(conf: Path) -> Path:
    os.chown(conf.parent, OTHER, 0)
    return conf


def _sticky_directory_of_another(conf: Path) -> Path:
    os.chown(conf.parent, OTHER, 0)
    conf.parent.chmod(0o1777)
    return conf


def _directory_of_a_group(conf: Path) -> Path:
    os.chown(conf.parent, 0, OTHER)
    conf.parent.chmod(0o775)
    return conf


def _far_above(conf: Path) -> Path:
    below = conf.parent / 'a' / 'b'
    below.mkdir(parents=True)
    (below / 'nova.conf').touch()
    os.chown(conf.parent, OTHER, 0)
    return below / 'nova.conf'


def _link_of_another(conf: Path) -> Path:
    link = conf.with_name('link')
    link.symlink_to(conf.name)
    os.chown(link, OTHER, 0, follow_symlinks=False)
    conf.parent.chmod(0o1777)
    return link


def _directory_link_of_another(conf: Path) -> Path:
    link = conf.parent / 'link'
    link.symlink_to('.')
    os.chown(link, OTHER, 0, follow_symlinks=False)
    conf.parent.chmod(0o1777)
    return link / conf.name


def _link_to_a_file_of_another(conf: Path) -> Path:
    return _link_of_roots(_owner(conf))


def _link_out_of_a_directory_of_another(conf: Path) -> Path:
    """What the kernel finds is not what the names say."""
    inner = conf.parent / 'inner'
    inner.mkdir()
    other = conf.parent.parent / 'other' / 'deep'
    other.mkdir(parents=True)
    (other.parent / 'nova.conf').touch()
    os.chown(other.parent, OTHER, 0)
    (conf.parent / 'link').symlink_to(other)
    return conf.parent / 'link' / '..' / 'nova.conf'


@needs_root
@pytest.mark.parametrize('make', [
    _owner, _group, _world, _directory_of_another,
    _sticky_directory_of_another, _directory_of_a_group, _far_above,
    _link_of_another, _directory_link_of_another, _link_to_a_file_of_another,
    _link_out_of_a_directory_of_another])
def test_what_is_of_another(conf: Path,
                            make: Callable[[Path], Path]) -> None:
    with pytest.raises(safe_path.Untrusted):
        safe_path.check_of_root(str(make(conf)))


@needs_root
def test_a_link_that_is_exchanged_for_one_of_roots(
        conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may add to a directory can move something of root's there."""
    path = _directory_link_of_another(conf)
    moved = conf.parent.parent / 'moved'
    moved.symlink_to('etc')
    readlink = os.readlink

    def exchanging(*args: str, **kwargs: int) -> str:
        target = readlink(*args, **kwargs)
        if moved.is_symlink():
            moved.rename(path.parent)
        return target

    monkeypatch.setattr(os, 'readlink', exchanging)
    with pytest.raises(safe_path.Untrusted, match='is a link'):
        safe_path.open_directory(str(path.parent))


def test_what_is_not_there(conf: Path) -> None:
    for path in (conf.parent / 'none', conf.parent / 'none' / 'x',
                 conf / 'x'):
        with pytest.raises(OSError, match=r'\[Errno'):
            safe_path.check_of_root(str(path))


def test_links_that_lead_in_a_circle(conf: Path) -> None:
    (conf.parent / 'a').symlink_to('b')
    (conf.parent / 'b').symlink_to('a')
    for path in (conf.parent / 'a', conf.parent / 'a' / 'x'):
        with pytest.raises(OSError, match='symbolic links'):
            safe_path.check_of_root(str(path))


def test_nothing_stays_open(conf: Path) -> None:
    test_links_that_lead_in_a_circle(conf)
    safe_path.check_log(str(conf))
    for path in (conf.parent / 'a', conf.parent / 'none' / 'x', 'relative'):
        with pytest.raises((OSError, safe_path.Untrusted)):
            safe_path.check_log(str(path))
    assert descriptors.below(conf.parent) == []


# Logs

def test_a_log_that_can_be_made(conf: Path) -> None:
    assert safe_path.check_log(str(conf.with_name('console.log'))) is None


def test_a_log_that_is_there(conf: Path) -> None:
    found = safe_path.check_log(str(conf))
    assert found is not None
    assert os.path.samestat(found, conf.stat())


@needs_root
def test_a_log_in_a_directory_of_another(conf: Path) -> None:
    """nova's, as all instance directories are, with nova's file or root's."""
    _directory_of_another(conf)
    assert safe_path.check_log(str(conf)) is not None
    _owner(conf)
    assert safe_path.check_log(str(conf)) is not None


def test_root_has_put_the_instances_elsewhere(conf: Path) -> None:
    link = _directory_link_of_roots(conf).parent
    (conf.parent / 'guest').mkdir()
    assert safe_path.check_log(f'{link}/guest/console.log') is None
    assert safe_path.check_log(f'{link}//guest/./console.log') is None
    # Its own directory is none of root's to exchange.
    with pytest.raises(safe_path.Untrusted, match='is a link'):
        safe_path.check_log(f'{link}/console.log')


@needs_root
def test_nova_has_put_a_directory_elsewhere(conf: Path) -> None:
    """A link above the guest's directory, in one that nova may write."""
    (conf.parent / 'real' / 'guest').mkdir(parents=True)
    (conf.parent / 'link').symlink_to('real')
    os.chown(conf.parent, OTHER, 0)
    with pytest.raises(safe_path.Untrusted, match='is a link'):
        safe_path.check_log(f'{conf.parent}/link/guest/console.log')


def _symbolic(conf: Path) -> None:
    conf.with_name('x').symlink_to(conf.name)


def _dangling(conf: Path) -> None:
    conf.with_name('x').symlink_to('none')


def _hard(conf: Path) -> None:
    conf.with_name('x').hardlink_to(conf)


def _fifo(conf: Path) -> None:
    os.mkfifo(conf.with_name('x'))


def _directory(conf: Path) -> None:
    conf.with_name('x').mkdir()


def _socket(conf: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(conf.with_name('x')))


@pytest.mark.parametrize('make', [_symbolic, _dangling, _hard, _fifo,
                                  _directory, _socket])
def test_what_is_no_log(conf: Path, make: Callable[[Path], None]) -> None:
    make(conf)
    with pytest.raises(safe_path.Untrusted, match='/x '):
        safe_path.check_log(str(conf.with_name('x')))


@needs_root
def test_a_file_of_a_stranger_is_no_log(conf: Path) -> None:
    with pytest.raises(safe_path.Untrusted, match=f'user {OTHER}'):
        safe_path.check_log(str(_owner(conf)))


@pytest.mark.parametrize('path', ['relative/x', '', '/', '/a/..', '/a/.',
                                  '/a/', '/a\0b/c'])
def test_what_is_no_path_of_a_log(path: str) -> None:
    with pytest.raises(safe_path.Untrusted):
        safe_path.check_log(path)
