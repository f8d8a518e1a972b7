# SPDX-License-Identifier: Apache-2.0
"""A viewer that has just come is shown the last lines of a console.

They are kept from what QEMU sends; what was written before the relay was
connected is taken from the log, once. What QEMU sends is in the log as well,
a little later (chardev/char.c, qemu_chr_write_buffer): where both meet is
found by comparing them.
"""

from virtlogd_driver.relay.buffer import line_start

#: So many bytes in common are no accident.
CERTAIN = 64


class Recent:
    """The newest bytes of a console are kept, with a bound."""

    def __init__(self, limit: int) -> None:
        """
        :param limit: most bytes that a viewer is sent
        """
        self._limit = limit
        self._data = bytearray()
        self._cut = False

    def __len__(self) -> int:
        return len(self._data)

    @property
    def data(self) -> bytes:
        """Give all bytes that are kept: up to twice the limit."""
        return bytes(self._data)

    def add(self, data: bytes) -> None:
        """Append what has just come."""
        self._data += data
        if len(self._data) > 2 * self._limit:
            # One byte more tells whether the rest begins a line.
            del self._data[:len(self._data) - self._limit - 1]
            self._cut = True

    def begin_with(self, earlier: bytes, cut: bool) -> None:
        """Put in front what was written before.

        :param cut: more was written before that
        """
        if not self._cut:
            self._data[:0] = earlier
            self._cut = cut

    def text(self) -> bytes:
        """Give what a viewer is sent: whole lines, as many as have room.

        A line that is longer than that is cut between two characters.
        """
        start = len(self._data) - self._limit
        if start <= 0:
            if not self._cut:
                return bytes(self._data)
            start = line_start(b'\0' + self._data, 1) - 1
        else:
            start = line_start(self._data, start)
        return bytes(self._data[start:])


def common(log: bytes, live: bytes, most: int) -> tuple[int, int]:
    """Count the bytes that end the log and begin what is live.

    It takes as long as the bytes are many, whatever a guest writes
    (Knuth, Morris and Pratt: Fast pattern matching in strings, 1977).

    :param log: the newest bytes of the log
    :param live: all that QEMU has sent since the relay was connected
    :param most: how much was logged since before then
    :returns: the largest number that is possible, and the one below it; 0
        where nothing matches
    """
    longest = max(0, min(len(log), len(live), most))
    begun = live[:longest]
    # Of each beginning: how many bytes end it and begin it, itself left out.
    shorter = [0] * (longest + 1)
    count = 0
    for place in range(1, longest):
        while count and begun[count] != begun[place]:
            count = shorter[count]
        count += begun[count] == begun[place]
        shorter[place + 1] = count
    count = 0
    for byte in log[len(log) - longest:]:
        while count and begun[count] != byte:
            count = shorter[count]
        count += begun[count] == byte
    return count, shorter[count]


def earlier(log: bytes, live: bytes, most: int,
            settled: bool) -> bytes | None:
    """Tell what the log has from before the first live byte.

    :param log: the newest bytes of the log
    :param live: all that QEMU has sent since the relay was connected; it was
        read after the log
    :param most: how much was logged since before then
    :param settled: nothing was logged and nothing sent for a while, so the
        log ends where the live bytes do
    :returns: None where that is not sure (yet)
    """
    if settled:
        # Where less was logged than sent the log is late, and ends with what
        # the guest wrote before: the same, at each of its starts.
        if len(live) > min(len(log), most) or not log.endswith(live):
            return None
        return log[:len(log) - len(live)]
    count, other = common(log, live, most)
    if count < CERTAIN or other >= CERTAIN:
        # Too little, or the guest writes the same again and again.
        return None
    return log[:len(log) - count]
