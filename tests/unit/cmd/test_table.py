# SPDX-License-Identifier: Apache-2.0
import pytest

from virtlogd_driver.cmd import table


@pytest.mark.parametrize(('count', 'text'), [
    (0, '0'), (1023, '1023'), (1024, '1.0K'), (10240, '10K'),
    (999 * 1024, '999K'), (1000 * 1024, '1.0M'), (2 << 20, '2.0M'),
    (5 << 40, '5.0T'), (5000 << 50, '5000P'),
])
def test_size(count: int, text: str) -> None:
    assert table.size(count) == text


@pytest.mark.parametrize(('seconds', 'text'), [
    (-1, '0 s'), (59.4, '59 s'), (60, '1 min'), (7199, '1 h'),
    (200000, '2 d'),
])
def test_age(seconds: float, text: str) -> None:
    assert table.age(seconds) == text


@pytest.mark.parametrize(('seconds', 'text'), [
    (0, '1970-01-01T00:00:00+00:00'), (-1, '1969-12-31T23:59:59+00:00'),
    (253402300799, '9999-12-31T23:59:59+00:00'), (253402300800, None),
    (-1e300, None), (float('inf'), None), (float('nan'), None),
])
def test_date(seconds: float, text: str | None) -> None:
    assert table.date(seconds) == text


def test_columns() -> None:
    assert table.lines(('NAME', 'SIZE', 'FILE'),
                       [('a', '1', 'x'), ('longer', '1000', '')],
                       frozenset({'SIZE'})) == [
        'NAME    SIZE  FILE',
        'a          1  x',
        'longer  1000']
