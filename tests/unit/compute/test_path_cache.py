# SPDX-License-Identifier: Apache-2.0
"""A path that is known is one that was looked up after the last change."""

import pytest

from virtlogd_driver.compute.path_cache import PathCache


def never() -> str:
    raise AssertionError('it is known')


def test_looked_up_once() -> None:
    paths = PathCache()
    assert paths.get('guest', lambda: '/log') == '/log'
    assert paths.get('guest', never) == '/log'
    assert paths.get('other', lambda: None) is None
    assert paths.get('other', never) is None


def test_forgotten() -> None:
    paths = PathCache()
    paths.get('guest', lambda: '/log')
    paths.get('other', lambda: '/other')
    paths.forget('guest')
    assert paths.get('guest', lambda: '/log1') == '/log1'
    assert paths.get('other', never) == '/other'


def test_a_change_meanwhile() -> None:
    paths = PathCache()

    def look() -> str:
        paths.forget('guest')
        return '/may be old'
    assert paths.get('guest', look) == '/may be old'
    assert paths.get('guest', lambda: '/new') == '/new'


def test_a_failure_is_not_kept() -> None:
    paths = PathCache()

    def fail() -> str:
        raise LookupError('gone')
    with pytest.raises(LookupError, match='gone'):
        paths.get('guest', fail)
    assert paths.get('guest', lambda: '/log') == '/log'
