# SPDX-License-Identifier: Apache-2.0
"""Plain text is what the rows of a terminal had in the end.

Control sequences are left out. A row that was written over, as progress bars
do with a carriage return, is given once, as it was when its line ended.
"""

import codecs
import re

from virtlogd_driver.cmd.control_sequences import visible

#: Characters of a row that are kept; a longer one is given as several.
LONGEST = 1 << 16
#: Columns that the cursor moves to where nothing was written, and that are
#: erased before it: few bytes would make many spaces. No terminal is wider.
WIDEST = 512

#: A control sequence (ECMA-48): CSI, a string (OSC, DCS, APC, PM, SOS), or of
#: two or three characters.
_SEQUENCE = re.compile(
    r'\x1b\[(?P<parameters>[0-?]{0,64})[ -/]{0,4}(?P<final>[@-~])'
    r'|\x1b[]PX^_][^\x07\x1b]{0,4096}(?:\x07|\x1b\\)'
    r'|\x1b[ -/]{1,2}[0-~]|\x1b[0-Z\\^-~]')
_BEGUN = re.compile(
    r'\x1b(?:\[[0-?]{0,64}[ -/]{0,4}|[]PX^_][^\x07\x1b]{0,4096}\x1b?'
    r'|[ -/]{1,2})?\Z')
_PIECE = re.compile(r'[^\x1b\r\n\b\x00-\x1f\x7f]+|\t+|.', re.DOTALL)


class Plain:
    """It takes a stream piece by piece, and gives its rows."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder('utf-8')('replace')
        self._begun = ''
        self._row: list[str] = []
        self._column = 0

    def text(self, data: bytes, final: bool = False) -> str:
        """Give the rows that have ended, each with its line end.

        :param final: nothing follows: also the one that has not
        """
        text = self._begun + self._decoder.decode(data, final)
        begun = None if final else _BEGUN.search(text)
        self._begun = begun[0] if begun is not None else ''
        end = len(text) - len(self._begun)
        given: list[str] = []
        place = 0
        while place < end:
            sequence = _SEQUENCE.match(text, place, end)
            if sequence is not None:
                self._obey(sequence)
                place = sequence.end()
                continue
            piece = _PIECE.match(text, place, end)
            assert piece is not None
            self._put(piece[0], given)
            place = piece.end()
        if final:
            given.append(self.unfinished())
        return ''.join(given)

    def unfinished(self) -> str:
        """Give the row that has not ended, once: what follows is another."""
        row = ''.join(self._row)
        self._row, self._column = [], 0
        return row

    def _put(self, piece: str, given: list[str]) -> None:
        if piece == '\n':
            given.append(self.unfinished().rstrip(' ') + '\n')
        elif piece == '\r':
            self._column = 0
        elif piece == '\b':
            self._column = max(0, self._column - 1)
        elif piece >= ' ' or piece[0] == '\t':
            self._write(visible(piece) if piece[0] != '\t' else piece)
            if len(self._row) >= LONGEST:
                given.append(self.unfinished() + '\n')

    def _write(self, text: str) -> None:
        """Put characters where the cursor is, over those that are there."""
        missing = self._column - len(self._row)
        if missing > 0:
            self._row += ' ' * missing
        end = self._column + len(text)
        self._row[self._column:end] = text
        self._column = end

    def _obey(self, sequence: re.Match[str]) -> None:
        """Move in the row, or erase in it; nothing else has a meaning here."""
        final, parameters = sequence['final'], sequence['parameters'] or ''
        if final is None or not re.fullmatch(r'[0-9]{0,4}', parameters):
            return
        count = int(parameters or 0)
        if final == 'K':
            if count in (0, 2):
                del self._row[0 if count == 2 else self._column:]
                self._move(self._column)
            if count == 1:
                end = min(self._column, len(self._row))
                begin = max(0, end - WIDEST)
                self._row[begin:end] = ' ' * (end - begin)
        elif final == 'C':
            self._move(self._column + max(count, 1))
        elif final == 'D':
            self._column = max(0, self._column - max(count, 1))
        elif final == 'G':
            self._move(max(count, 1) - 1)

    def _move(self, column: int) -> None:
        self._column = min(column, max(len(self._row), WIDEST))
