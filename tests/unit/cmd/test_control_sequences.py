# SPDX-License-Identifier: Apache-2.0
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtlogd_driver.cmd.control_sequences import Neutraliser, visible

#: What no terminal takes for a command.
_TEXT = '[^\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|[\n\r\t\b]'
#: Any control sequence, its parameters and its final byte.
_CSI = re.compile('\x1b\\[([0-9;:?]*)([@-~])')
_HARMLESS = re.compile(f'(?:{_TEXT}|\x1b\\[[0-9;:]*m)*')
_HARMLESS_SCREEN = re.compile(
    f'(?:{_TEXT}|{_CSI.pattern}' r'|\x1b[=>78M]|\x1b\([B0]|\x07)*')
#: What an interactive console may do: moves, erases what is on the screen,
#: and is undone by RESET_SCREEN.
_MOVES = frozenset('ABCDEFGHLMPSTX@dfr')
_MODES = frozenset({'?1', '?7', '?12', '?25'})


def hides(parameters: str) -> bool:
    """Whether a terminal that reads SGR parameters would hide text."""
    left = iter(parameters.split(';'))
    for parameter in left:
        number, *more = (int(part or 0) for part in parameter.split(':'))
        if number in (38, 48, 58) and not more:
            for _ in range({5: 1, 2: 3}.get(int(next(left, '0') or 0), 0)):
                next(left, None)
        elif number == 8:
            return True
    return False


def assert_harmless(shown: str, screen: bool = False) -> None:
    """An independent statement of what is on the list."""
    assert (_HARMLESS_SCREEN if screen else _HARMLESS).fullmatch(shown)
    for parameters, final in _CSI.findall(shown):
        if final == 'm':
            assert not hides(parameters)
        elif final in 'JK':
            assert parameters in ('', '0', '1', '2')
        elif final in 'hl':
            assert parameters in _MODES
        else:
            assert final in _MOVES
            numbers = parameters.split(';')
            assert len(numbers) <= (2 if final in 'Hfr' else 1)
            assert max(map(len, numbers)) <= 4


#: Pieces that guests write, and parts of them.
_PIECES = st.sampled_from([
    b'\x1b', b'\x1b[', b'\x1b[3', b'1m', b'\x1b]0;t\x07', b'\x9b', b'\xc2',
    b'\x9d', b'm', b'6n', b'\xe2\x80', b'\xae', b'text', b'\n', b'\x00',
    b'8', b'08', b';', b':', b'38;5;', b'48;2;', b'3J', b'J', b'h', b'?', b'T',
    b'99999', b'\x1bP', b'\x1b\\', b'\x1b(', b'0'])


def whole(data: bytes, **options: bool) -> str:
    neutral = Neutraliser(**options)
    return neutral.text(data) + neutral.text(b'', True)


@pytest.mark.parametrize(('data', 'shown'), [
    (b'plain\r\n\ttext\b', 'plain\r\n\ttext\b'),
    (b'\x1b[1;31mred\x1b[0m', '\x1b[1;31mred\x1b[0m'),
    (b'\x1b[38:5:1m\x1b[m', '\x1b[38:5:1m\x1b[m'),
    (b'\x1b]0;title\x07', '^[]0;title^G'),
    (b'\x1b]52;c;eA==\x1b\\', '^[]52;c;eA==^[\\'),
    (b'\x1bP1$r\x1b\\', '^[P1$r^[\\'),
    (b'\x1b[2J\x1b[H', '^[[2J^[[H'),
    (b'\x1b[6n\x1b[c\x1b[>c', '^[[6n^[[c^[[>c'),
    (b'\x1b[?1049h', '^[[?1049h'),
    (b'\x1bc\x1b(0', '^[c^[(0'),
    (b'\x9b2J', '\\x9b2J'),
    ('\x9b2J'.encode(), '\\x9b2J'),
    (b'\xff\xfe', '\\xff\\xfe'),
    (b'\x00\x07\x7f\x0b\x0c\x0e', '^@^G^?^K^L^N'),
    ('\u202eevil\u2066'.encode(), '<U+202E>evil<U+2066>'),
    ('grün 中文 🙂'.encode(), 'grün 中文 🙂'),
    (b'\x1b', '^['),
    (b'\x1b[31', '^[[31'),
    (b'\x1b[' + b'1;' * 100 + b'm', '^[[' + '1;' * 100 + 'm'),
    (b'\x1b[8mhidden', '^[[8mhidden'),
    (b'\x1b[1;08m\x1b[0;8;1m\x1b[38;5;1;8m', '^[[1;08m^[[0;8;1m^[[38;5;1;8m'),
    (b'\x1b[38;5;8m\x1b[48;2;8;8;8m\x1b[38:2::8:8:8m\x1b[4:3m',
     '\x1b[38;5;8m\x1b[48;2;8;8;8m\x1b[38:2::8:8:8m\x1b[4:3m'),
    (b'\x1b[0;1;4;7;39;49;97;107m', '\x1b[0;1;4;7;39;49;97;107m'),
    (b'\x1b[38;5m\x1b[38;2;1m', '^[[38;5m^[[38;2;1m'),
])
def test_what_is_shown(data: bytes, shown: str) -> None:
    assert whole(data) == shown


def test_without_colours() -> None:
    assert whole(b'\x1b[31mred\x1b[0m', colour=False) == 'red'


def test_an_interactive_console_may_move_its_cursor() -> None:
    moves = b'\x1b[2J\x1b[1;1Hvi\x1b[K\x1b[?25l\x1b7\x1b8\x07\x1b[1;24r'
    assert whole(moves, screen=True).encode() == moves
    assert whole(b'\x1b]0;title\x07guest# ', screen=True) == 'guest# '
    assert whole(b'\x1b]52;c;eA==\x1b\\.', screen=True) == '.'
    assert whole(b'\x1b[6n\x1b[?1000h\x1b[8;1;1t.', screen=True) == '.'
    # What was scrolled away stays; text is not hidden; no mouse is tracked.
    assert whole(b'\x1b[3J\x1b[8m\x1b[1;2;3;4;5T.', screen=True) == '.'
    assert whole(b'\x1bP$q\x1b\\\x1b_x\x07.\x1bc', screen=True) == '.^[c'
    assert whole(b'\x1b]0;unfinished', screen=True) == '^[]0;unfinished'


def test_a_backspace_may_not_reach_into_a_label() -> None:
    assert whole(b'a\b\b', overstrike=False) == 'a^H^H'


@given(st.lists(st.one_of(_PIECES, st.binary(max_size=8)), max_size=30),
       st.booleans())
def test_nothing_else_passes_however_it_comes(pieces: list[bytes],
                                              screen: bool) -> None:
    neutral = Neutraliser(screen=screen)
    shown = ''.join(map(neutral.text, pieces)) + neutral.text(b'', True)
    assert_harmless(shown, screen)
    assert shown == whole(b''.join(pieces), screen=screen)


def test_visible_leaves_no_control_character() -> None:
    everything = ''.join(map(chr, range(0x300))) + '\u202e\ud800'
    assert_harmless(visible(everything))
    assert '\n' not in visible(everything)
