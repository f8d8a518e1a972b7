# SPDX-License-Identifier: Apache-2.0
"""What a guest writes is made harmless for a terminal.

A guest can write anything, also what sets the title of a terminal, fills its
clipboard, makes it answer as if somebody typed, erases what was scrolled away,
or hides what comes after. So only what is on a list passes: colours and other
looks that leave text readable, and line discipline. Every other control
character is shown as ``^[``, ``^G``, ``\\x9b``, and so does nothing. Text has
to be UTF-8; what is not is shown byte by byte, since a terminal may take it
for control characters (C1). terminal.encode gives what is shown to one that
reads another encoding.

An interactive console also passes what moves the cursor, and leaves out other
sequences as a whole: a prompt that sets the title should stay a prompt.

What a guest has switched on stays on: whatever else is written begins with
RESET, or RESET_SCREEN, and on a line of its own.
"""

import codecs
import re
import unicodedata

#: Of ECMA-48 SGR: looks, colours, and their ends. Not 8, which hides text.
_LOOK = (r'0{0,2}(?:[0-79]|2[1-79]|3[0-79]|4[0-79]|5[35]|9[0-7]|10[0-7])'
         r'|4:[0-5]'
         r'|[345]8(?::5:[0-9]{1,3}|:2(?::[0-9]{0,3}){3,5})'
         '|')
#: Every terminal knows a palette. One that does not know the colour of
#: underlines (58), or true colours, takes their numbers for looks, and may be
#: at another place from there on: with one of them no number is 8.
_KNOWN = rf'[34]8;5;[0-9]{{1,3}}|{_LOOK}'
_NOT_8 = r';(?!0{0,2}8(?![0-9]))[0-9]{1,3}'
_NEWER = rf'[345]8;(?:5{_NOT_8}|2(?:{_NOT_8}){{3}})|{_LOOK}'
_COLOUR = (rf'\x1b\[(?:(?:{_KNOWN})(?:;(?:{_KNOWN})){{0,15}}'
           rf'|(?:{_NEWER})(?:;(?:{_NEWER})){{0,15}})m')
#: Moves the cursor, erases on the screen (not 3J, which erases what was
#: scrolled away), inserts, deletes, scrolls; shows the cursor, wraps lines,
#: sends arrow keys as a program wants them. What shells and editors need, and
#: nothing that answers or outlives the screen.
_SCREEN = (r'\x1b\[[0-9]{0,4}[ABCDEFGLMPSTX@d]'
           r'|\x1b\[[0-9]{0,4}(?:;[0-9]{0,4})?[Hfr]'
           r'|\x1b\[[0-2]?[JK]'
           r'|\x1b\[\?(?:1|7|12|25)[hl]'
           r'|\x1b[=>78M]|\x1b\([B0]|\x07')
#: Any other sequence: CSI, and strings (OSC, DCS, APC, PM, SOS).
_SEQUENCE = (r'\x1b\[[0-?]{0,64}[ -/]{0,4}[@-~]'
             r'|\x1b[]PX^_][^\x07\x1b]{0,1024}(?:\x07|\x1b\\)')
#: An unfinished sequence at the end of what has come so far.
_BEGUN = re.compile(r'\x1b(?:\[[0-?]{0,64}[ -/]{0,4}|\()?\Z')
_BEGUN_STRING = re.compile(
    _BEGUN.pattern + r'|\x1b[]PX^_][^\x07\x1b]{0,1024}\x1b?\Z')

_LINE = '\n\r\t\b'
#: Characters that reorder the text around them.
_REORDERING = frozenset('\u061c\u200e\u200f\u2028\u2029'
                        '\u202a\u202b\u202c\u202d\u202e'
                        '\u2066\u2067\u2068\u2069')

RESET = '\x1b[0m'
#: After a screen: also all of it scrolls (which would move the cursor), the
#: cursor is shown, lines wrap.
RESET_SCREEN = ('\x1b[0m\x1b(B\x1b7\x1b[r\x1b8'
                '\x1b[?25h\x1b[?7h\x1b[?1l\x1b>')


class Neutraliser:
    """Makes a stream harmless, piece by piece.

    :param colour: pass colours on; False: leave them out
    :param screen: pass on what moves the cursor, for an interactive console
    :param overstrike: pass on the backspace
    """

    def __init__(self, *, colour: bool = True, screen: bool = False,
                 overstrike: bool = True) -> None:
        self._decoder = codecs.getincrementaldecoder('utf-8')(
            'backslashreplace')
        self._colour = colour
        passed = f'{_COLOUR}|{_SCREEN}' if screen else _COLOUR
        left_out = _SEQUENCE if screen else '(?!)'
        self._unfinished = _BEGUN_STRING if screen else _BEGUN
        line = _LINE if overstrike else _LINE.replace('\b', '')
        self._special = re.compile(
            f'(?P<passed>{passed})|(?P<left_out>{left_out})|(?P<line>[{line}])'
            '|(?P<other>[\\x00-\\x1f\\x7f-\\x9f'
            f'{"".join(sorted(_REORDERING))}])')
        self._begun = ''

    def text(self, data: bytes, final: bool = False) -> str:
        """Give what of the stream can be shown so far.

        :param final: nothing follows
        """
        text = self._begun + self._decoder.decode(data, final)
        self._begun = ''
        if not final:
            begun = self._unfinished.search(text)
            if begun is not None:
                self._begun = begun[0]
                text = text[:begun.start()]
        return self._special.sub(self._harmless, text)

    def _harmless(self, match: re.Match[str]) -> str:
        if match['line'] is not None:
            return match[0]
        if match['passed'] is not None:
            is_colour = match[0].endswith('m')
            return match[0] if self._colour or not is_colour else ''
        if match['left_out'] is not None:
            return ''
        return visible(match[0])


def visible(text: str) -> str:
    """Give a text with every control character shown."""
    return ''.join(map(_visible, text))


def _visible(character: str) -> str:
    code = ord(character)
    if code < 0x20 or code == 0x7f:
        return f'^{chr(code ^ 0x40)}'
    if 0x80 <= code < 0xa0:
        return f'\\x{code:02x}'
    if character in _REORDERING or unicodedata.category(character) in (
            'Cc', 'Cs'):
        return f'<U+{code:04X}>'
    return character
