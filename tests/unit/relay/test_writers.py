# SPDX-License-Identifier: Apache-2.0
"""The relay decides which viewers may type."""

from virtlogd_driver.relay.writers import Writers


def _joined(policy: str) -> Writers[str]:
    writers: Writers[str] = Writers(policy)
    for name in ('anna', 'bert', 'carl'):
        writers.join(name)
    return writers


def test_all() -> None:
    writers = _joined('all')
    assert writers.may_type('anna')
    assert writers.may_type('carl')
    assert writers.leave('anna') is None
    assert not writers.may_type('anna')


def test_a_turn_is_taken_and_given() -> None:
    writers = _joined('first')
    assert writers.take('carl') == 'anna'
    assert writers.take('carl') is None
    assert [writers.may_type(n) for n in ('anna', 'carl')] == [False, True]
    # Who was before is the next again.
    assert writers.leave('carl') == 'anna'
    # One that only watched takes it after all.
    assert writers.take('carl') == 'anna'
    assert writers.leave('anna') is None


def test_where_all_may_type_one_may_only_watch() -> None:
    writers = _joined('all')
    assert writers.leave('bert') is None
    assert [writers.may_type(n) for n in ('anna', 'bert')] == [True, False]
    assert writers.take('bert') is None
    assert [writers.may_type(n) for n in ('anna', 'bert')] == [True, True]


def test_only_the_first_and_then_the_next() -> None:
    writers = _joined('first')
    assert [writers.may_type(n) for n in ('anna', 'bert')] == [True, False]
    assert writers.leave('bert') is None
    assert writers.leave('anna') == 'carl'
    assert writers.may_type('carl')
