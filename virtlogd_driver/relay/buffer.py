# SPDX-License-Identifier: Apache-2.0
"""A buffer holds what one viewer has yet to be sent, in bounded memory."""

_MISSING = ('[console relay: {} bytes are missing here, as this viewer did '
            'not read fast enough]\r\n')


def line_start(data: bytes | bytearray, at: int) -> int:
    """Tell where a text may be cut without cutting a line or a character.

    :param at: the first place that will do
    :returns: the beginning of a line; where none follows, of a UTF-8
        character; the length of the data where that does not either
    """
    if at <= 0:
        return 0
    newline = data.find(b'\n', at - 1)
    if newline >= 0:
        return newline + 1
    # At most three bytes continue a character.
    for place in range(at, min(at + 4, len(data))):
        if data[place] & 0xC0 != 0x80:
            return place
    return min(at + 4, len(data))


class Buffer:
    """A buffer keeps the bytes that wait for a viewer.

    Where they would be more than the limit the oldest whole lines are
    dropped, and the viewer is told so in one line in their place. A line that
    has been begun is sent to its end, unless it is longer than half of the
    limit.
    """

    def __init__(self, limit: int) -> None:
        """
        :param limit: most bytes to keep
        """
        self._limit = limit
        # What comes before the gap, how many bytes that is, what comes after.
        self._head = bytearray()
        self._missing = 0
        self._tail = bytearray()
        self._in_line = False
        #: Bytes that were dropped so far.
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._head) + len(self._tail)

    def add(self, data: bytes) -> None:
        """Append bytes; the oldest lines make room for them."""
        self._tail += data
        if len(self) > self._limit:
            self._drop()

    def sent_at_once(self, data: bytes) -> None:
        """Note what the viewer was sent while nothing waited for it."""
        if data:
            self._in_line = data[-1:] != b'\n'

    def _drop(self) -> None:
        if not self._missing and not self._head and self._in_line:
            end = self._tail.find(b'\n') + 1
            if 0 < end <= self._limit // 2:
                self._head = self._tail[:end]
                del self._tail[:end]
        excess = len(self) - self._limit
        if excess <= 0:
            return
        cut = line_start(self._tail, min(excess, len(self._tail)))
        del self._tail[:cut]
        self._missing += cut
        self.dropped += cut

    def take(self, most: int) -> bytes:
        """Remove and return the oldest bytes; none where nothing waits.

        :param most: of them
        """
        if not self._head and self._missing:
            begun = '\r\n' if self._in_line else ''
            self._head += (begun + _MISSING.format(self._missing)).encode()
            self._missing = 0
        source = self._head or self._tail
        taken = bytes(source[:most])
        del source[:most]
        if taken:
            self._in_line = taken[-1:] != b'\n'
        return taken
