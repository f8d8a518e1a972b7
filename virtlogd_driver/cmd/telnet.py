# SPDX-License-Identifier: Apache-2.0
"""A client speaks telnet with a serial port (RFC 854, RFC 856 to 858).

As far as QEMU's side of it asks for: both sides send bytes of any value
(BINARY), the guest echoes (ECHO), nobody says "go ahead" (SGA). Every other
option is declined. What is negotiated is no output of the guest. As none of
these options is subnegotiated, what looks like that is: QEMU does not double
the bytes of a guest, and it would hide all that follows.
"""

import enum

_SE, _SB = 240, 250
_WILL, _WONT, _DO, _DONT = 251, 252, 253, 254
_IAC = 255
_BINARY, _ECHO, _SGA = 0, 1, 3
#: Options that the other side may use, and that this side does.
_THEIRS = frozenset({_BINARY, _ECHO, _SGA})
_OURS = frozenset({_BINARY, _SGA})


class _State(enum.Enum):
    DATA = enum.auto()
    COMMAND = enum.auto()
    OPTION = enum.auto()


class Telnet:
    """One side of a connection keeps its state from read to read."""

    def __init__(self) -> None:
        self._state = _State.DATA
        self._command = 0
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
                elif byte <= _SE or byte == _SB:
                    # No command of QEMU's: the guest wrote it.
                    shown += bytes((_IAC, byte))
            else:
                answer += self._negotiate(self._command, byte)
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
