# SPDX-License-Identifier: Apache-2.0
import itertools
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


#: What terminals know: the colour of underlines (58), true colours, and how
#: much they skip of a colour that they do not know.
_TERMINALS = tuple(itertools.product((True, False), (True, False), (0, 1)))


def hides(parameters: str) -> bool:
    """Whether a terminal that reads SGR parameters would hide text."""
    return any(_hides(parameters, *known) for known in _TERMINALS)


def _hides(parameters: str, underlines: bool, true_colour: bool,
           skipped: int) -> bool:
    left = [[int(part or 0) for part in parameter.split(':')]
            for parameter in parameters.split(';')]
    lengths = {5: 2, 2: 4} if true_colour else {5: 2}
    place = 0
    while place < len(left):
        number, *more = left[place]
        place += 1
        if number in (38, 48, *([58] if underlines else [])) and not more:
            (kind, *_) = left[place] if place < len(left) else [0]
            place += lengths.get(kind, skipped)
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
    b'8', b'08', b';', b':', b'38;5;', b'48;2;', b'58;5;', b'3J', b'J', b'h',
    b'?', b'T', b'99999', b'\x1bP', b'\x1b\\', b'\x1b(', b'0'])


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
    (b'\x1b[38;5;8m\x1b[48;2;9;9;9m\x1b[38:2::8:8:8m\x1b[4:3m',
     '\x1b[38;5;8m\x1b[48;2;9;9;9m\x1b[38:2::8:8:8m\x1b[4:3m'),
    (b'\x1b[58;5;9m\x1b[58:5:8m\x1b[1;38;2;80;18;88;48;5;7m',
     '\x1b[58;5;9m\x1b[58:5:8m\x1b[1;38;2;80;18;88;48;5;7m'),
    (b'\x1b[0;1;4;7;39;49;97;107m', '\x1b[0;1;4;7;39;49;97;107m'),
    (b'\x1b[38;5m\x1b[38;2;1m', '^[[38;5m^[[38;2;1m'),
])
def test_what_is_shown(data: bytes, shown: str) -> None:
    assert whole(data) == shown


@pytest.mark.parametrize('hidden', [
    '58;5;8', '58;5;08', '58;2;8;1;1', '58;2;1;8;1', '58;2;1;1;8',
    '38;2;1;8;1', '48;2;1;1;008', '1;58;5;8;1',
    # 38 is a colour's number, or begins another colour.
    '58;5;48;38;5;8', '58;2;1;1;48;5;38;5;8'])
def test_a_colour_that_a_terminal_may_not_know_does_not_hide(
        hidden: str) -> None:
    assert hides(hidden)
    assert whole(f'\x1b[{hidden}m.'.encode()) == f'^[[{hidden}m.'
    assert whole(f'\x1b[{hidden}m.'.encode(), screen=True) == '.'


def test_no_order_of_parameters_hides_from_any_terminal() -> None:
    for length in range(1, 7):
        for chosen in itertools.product((2, 5, 8, 38, 58), repeat=length):
            parameters = ';'.join(map(str, chosen))
            assert_harmless(whole(f'\x1b[{parameters}m'.encode()))


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
