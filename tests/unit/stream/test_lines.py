# SPDX-License-Identifier: Apache-2.0
"""Bytes that come in any pieces become the same lines."""

from hypothesis import given
from hypothesis import strategies as st

from virtlogd_driver.stream import lines
from virtlogd_driver.stream.lines import LONGEST, Line, Splitter


def fed(*pieces: bytes) -> list[Line]:
    """Give the lines of pieces, with their ends counted from the first."""
    splitter = Splitter(clock=lambda: 1.0)
    found, before = [], 0
    for piece in pieces:
        found += [Line(line.data, line.time, before + line.end, line.partial)
                  for line in splitter.feed(piece)]
        before += len(piece)
    quiet = splitter.quiet()
    return found if quiet is None else [
        *found, Line(quiet.data, quiet.time, before, True)]


def test_lines_are_given_without_their_ends() -> None:
    assert fed(b'one\r\ntwo\n\nthr') == [
        Line(b'one', 1.0, 5), Line(b'two', 1.0, 9), Line(b'', 1.0, 10),
        Line(b'thr', 1.0, 13, True)]


def test_a_line_keeps_when_it_began() -> None:
    times = iter((1.0, 2.0, 3.0))
    splitter = Splitter(clock=lambda: next(times))
    assert list(splitter.feed(b'be')) == []
    assert list(splitter.feed(b'gun\nnext')) == [Line(b'begun', 1.0, 4)]
    assert list(splitter.feed(b'\n')) == [Line(b'next', 2.0, 1)]


def test_it_goes_on_where_another_has_stopped() -> None:
    first = Splitter(clock=lambda: 1.0)
    assert list(first.feed(b'half a ')) == []
    second = Splitter(first.rest, first.begun)
    assert list(second.feed(b'line\n')) == [Line(b'half a line', 1.0, 5)]


def test_a_long_line_is_cut_between_characters() -> None:
    for before in range(5):
        text = b'x' * before + '\N{PILE OF POO}'.encode() * (LONGEST // 2 + 2)
        found = fed(text + b'\n')
        assert b''.join(line.data for line in found) == text
        assert [line.partial for line in found] == [True, True, False]
        for line in found:
            line.data.decode()
            assert len(line.data) <= LONGEST + 3


@given(st.lists(st.sampled_from((
    b'a', b'\n', b'\r', b'\r\n', '\N{EURO SIGN}'.encode(), b'\xe2', b'\x82',
    b'x' * LONGEST, b'\xac' * LONGEST)), max_size=9), st.data())
def test_how_it_is_cut_does_not_matter(words: list[bytes],
                                       data: st.DataObject) -> None:
    whole = b''.join(words)
    places = sorted(data.draw(st.lists(st.integers(0, len(whole)),
                                       max_size=6)))
    pieces = [whole[a:b] for a, b in zip(
        [0, *places], [*places, len(whole)], strict=True)]
    assert fed(*pieces) == fed(whole)
    ends = [0, *[line.end for line in fed(whole)]]
    for begin, end, line in zip(ends, ends[1:], fed(whole), strict=False):
        written = whole[begin:end]
        assert written == line.data if line.partial else (
            lines.without_return(written[:-1]) == line.data)
    assert ends[-1] == len(whole)
