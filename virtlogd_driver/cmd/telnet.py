# SPDX-License-Identifier: Apache-2.0
"""A client speaks telnet with a serial port (RFC 854, RFC 856 to 858).

As far as QEMU's side of it asks for: both sides send bytes of any value
(BINARY), the guest echoes (ECHO), nobody says "go ahead" (SGA). Every other
option is declined. What is negotiated is no output of the guest.

QEMU does not double the bytes of a guest, so that it may begin what looks like
a subnegotiation, and hide all that follows: one without an end is shown.
"""

import enum

_SE, _SB = 240, 250
_WILL, _WONT, _DO, _DONT = 251, 252, 253, 254
_IAC = 255
_BINARY, _ECHO, _SGA = 0, 1, 3
#: Options that the other side may use, and that this side does.
_THEIRS = frozenset({_BINARY, _ECHO, _SGA})
_OURS = frozenset({_BINARY, _SGA})

#: Bytes of the longest subnegotiation; none of the options above has one.
_LONGEST = 64


class _State(enum.Enum):
    DATA = enum.auto()
    COMMAND = enum.auto()
    OPTION = enum.auto()
    SUBNEGOTIATION = enum.auto()


class Telnet:
    """One side of a connection keeps its state from read to read."""

    def __init__(self) -> None:
        self._state = _State.DATA
        self._command = 0
        #: The subnegotiation that has begun, with the command before it.
        self._begun = bytearray()
        #: Options in force, and who uses them: with WILL the other side, with
        #: DO this one.
        self._agreed: set[tuple[int, int]] = set()

    def received(self, data: bytes) -> tuple[bytes, bytes]:
        """Give what the guest wrote, and what is to be answered.

        :param data: bytes of the connection, cut anywhere
        """
        shown, answer = bytearray(), bytearray()
        for byte in data:
            if self._state is _State.DATA:
                if byte == _IAC:
                    self._state = _State.COMMAND
                else:
                    shown.append(byte)
            elif self._state is _State.COMMAND:
                self._state = _State.DATA
                if byte in (_WILL, _WONT, _DO, _DONT):
                    self._command = byte
                    self._state = _State.OPTION
                elif byte == _IAC:
                    shown.append(byte)
                elif byte == _SB:
                    self._begun[:] = _IAC, _SB
                    self._state = _State.SUBNEGOTIATION
                elif byte <= _SE:
                    # No command of QEMU's: the guest wrote it.
                    shown += bytes((_IAC, byte))
            elif self._state is _State.OPTION:
                answer += self._negotiate(self._command, byte)
                self._state = _State.DATA
            else:
                self._begun.append(byte)
                if _has_ended(self._begun):
                    self._state = _State.DATA
                elif len(self._begun) > _LONGEST:
                    shown += self._begun
                    self._state = _State.DATA
        return bytes(shown), bytes(answer)

    @staticmethod
    def typed(data: bytes) -> bytes:
        """Give what is to be sent for keys."""
        return data.replace(b'\xff', b'\xff\xff')

    def _negotiate(self, command: int, option: int) -> bytes:
        """Give the answer, if there is one: none to what is in force."""
        asked = _WILL if command in (_WILL, _WONT) else _DO
        key = asked, option
        wanted = command == asked
        if wanted == (key in self._agreed):
            return b''
        if not wanted:
            self._agreed.remove(key)
        elif option in (_THEIRS if asked == _WILL else _OURS):
            self._agreed.add(key)
        else:
            wanted = False
        if asked == _WILL:
            return bytes((_IAC, _DO if wanted else _DONT, option))
        return bytes((_IAC, _WILL if wanted else _WONT, option))


def _has_ended(begun: bytearray) -> bool:
    """Tell whether IAC SE ends a subnegotiation; IAC twice is a byte of it."""
    return begun[2:].replace(b'\xff\xff', b'').endswith(bytes((_IAC, _SE)))
