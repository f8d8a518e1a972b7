# SPDX-License-Identifier: Apache-2.0
"""Plain text is what the rows of a terminal had in the end."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtlogd_driver.cmd.plain import LONGEST, WIDEST, Plain


def plain(data: bytes) -> str:
    return Plain().text(data, final=True)


@pytest.mark.parametrize(('written', 'shown'), [
    (b'one\r\ntwo\n', 'one\ntwo\n'),
    (b'\x1b[1;31mred\x1b[0m and not\n', 'red and not\n'),
    (b'\x1b]0;a title\x07prompt$ ', 'prompt$ '),
    (b' 10%\r 50%\r100%\n', '100%\n'),
    (b'a longer row\rshort\x1b[K\n', 'short\n'),
    (b'a longer row\rshort\n', 'shortger row\n'),
    (b'\x1b[2K\rgone\x1b[2K\rhere\n', 'here\n'),
    (b'[ * ]\x08\x08\x08***]\n', '[ ***]\n'),
    (b'abc\x1b[2Dx\x1b[10Gy\n', 'axc      y\n'),
    (b'abcdef\x1b[3D\x1b[1Kx\n', '   xef\n'),
    (b'abc\x1b[2Kx\n', '   x\n'),
    (b'[  OK  ] Started\x1b[0;1;39m a unit\x1b[0m.\r\n',
     '[  OK  ] Started a unit.\n'),
    (b'bell\x07 and null\x00\n', 'bell and null\n'),
    (b'no \xff UTF-8\n', 'no \N{REPLACEMENT CHARACTER} UTF-8\n'),
    (b'\x1b(B\x1b[?25l\x1bMplain\x1b', 'plain'),
    (b'a\tb\n', 'a\tb\n'),
    ('\u202eback\n'.encode(), '<U+202E>back\n'),
])
def test_rows(written: bytes, shown: str) -> None:
    assert plain(written) == shown


def test_a_row_is_bounded() -> None:
    flood = Plain()
    for _ in range(5):
        flood.text(b'x' * LONGEST)
    assert len(flood.unfinished()) <= LONGEST
    for far in (b'\x1b[9999C', b'\x1b[9999G', b'\x1b[9999C' * 100):
        assert len(plain(far + b'x')) <= WIDEST + 2
    # Where something was written the cursor moves as it did.
    row = b'x' * 2 * WIDEST
    assert plain(row + b'\r\x1b[1000Gy') == plain(
        b'x' * 999 + b'y' + b'x' * (len(row) - 1000))


@pytest.mark.parametrize('erase', [b'\x1b[1K', b'\x1b[2Kx', b'\x1b[Kx'])
def test_what_is_erased_again_and_again_costs_little(erase: bytes) -> None:
    """A guest can write such a line as fast as any other."""
    def cost(written: int) -> float:
        begun = time.thread_time()
        plain(b'x' * written + erase * 8000)
        return time.thread_time() - begun

    # Where each erased all of the row it was 300 times as much.
    assert cost(LONGEST // 2) < 30 * cost(10)


@given(st.lists(st.sampled_from((
    b'text', b'\r', b'\n', b'\x08', b'\x1b[K', b'\x1b[3D', b'\x1b]0;x\x07',
    b'\x1b', b'[', b'\xe2\x82\xac', b'\xff', b'\x1b[1;31m', b'\t')),
    max_size=20), st.data())
def test_how_it_is_cut_does_not_matter(words: list[bytes],
                                       data: st.DataObject) -> None:
    whole = b''.join(words)
    place = data.draw(st.integers(0, len(whole)))
    cut = Plain()
    assert (cut.text(whole[:place]) + cut.text(whole[place:], final=True)
            == plain(whole))


@given(st.binary(max_size=200))
def test_nothing_of_it_controls_a_terminal(data: bytes) -> None:
    for character in plain(data):
        assert character in '\n\t' or character.isprintable() or (
            ord(character) > 0x9f)
