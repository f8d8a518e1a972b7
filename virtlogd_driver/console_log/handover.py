# SPDX-License-Identifier: Apache-2.0
"""A privileged process sends open files to the process that asked for them.

privsep's answers carry values, no descriptors; so those go beside them, over a
socket of the caller's (unix(7), SCM_RIGHTS).

* The privileged process sends to nobody but its caller: the address has to be
  an abstract one that the kernel chose, so none that any service has; and the
  process that listens there has to be the one at the other end of privsep's
  own socket. Nothing is sent before that is known.
* Anybody in the same network namespace may connect to the caller's socket: it
  takes only what comes with the secret that it has told in the call.
* Nothing waits, on either side: all is sent before privsep's answer.
* A connection is made once and used for many calls, each by one thread.

Where it cannot be (another network namespace, a security module, a socket that
somebody floods) both say so, and the bytes go as privsep's answers do.
"""

import contextlib
import hmac
import re
import secrets
import socket
import struct
from collections.abc import Sequence
from os import close
from types import TracebackType
from typing import Self

from virtlogd_driver import peer

#: Name of the socket, and the secret: what msgpack can carry.
Address = tuple[bytes, bytes]

_SECRET_BYTES = 16

#: Descriptors in one message: the kernel's limit is 253 (SCM_MAX_FD).
_MOST_AT_ONCE = 128

#: Connections that wait to be looked at, those of strangers included.
_BACKLOG = 16

#: Connections that a sender keeps: as many as there may be reads at once.
_MOST_CONNECTIONS = 32

#: What the kernel calls a socket that is bound to no name (autobind).
_CHOSEN = re.compile(rb'\0[0-9a-f]{5}')

_FD = struct.Struct('i')


class Receiver:
    """The caller receives open files here, of one call after the other.

    One of which a call has failed is to be closed: there may be files in it.
    """

    def __init__(self) -> None:
        self.closed = False
        self._connection: socket.socket | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.setblocking(False)
            self._socket.bind('')
            self._socket.listen(_BACKLOG)
            self._name: bytes = self._socket.getsockname()
        except BaseException:
            self._socket.close()
            raise
        self._secret = secrets.token_bytes(_SECRET_BYTES)

    @property
    def address(self) -> Address:
        return self._name, self._secret

    def __enter__(self) -> Self:
        return self

    def __exit__(
            self, kind: type[BaseException] | None,
            error: BaseException | None,
            traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.closed = True
        self._socket.close()
        if self._connection is not None:
            self._connection.close()

    def take(self, count: int) -> list[int] | None:
        """Give the descriptors that have come, which are the caller's now.

        :param count: how many there have to be; nothing is sent for none
        :returns: None: they have not come, or not all of them
        """
        if count == 0:
            return []
        for _ in range(_BACKLOG + 2):
            if self._connection is None:
                try:
                    self._connection, _ = self._socket.accept()
                except OSError:
                    return None
                self._connection.setblocking(False)
            found = _received(self._connection, self._secret, count)
            if found is not None:
                return found
            # It was somebody else, or the helper has been started anew.
            self._connection.close()
            self._connection = None
        return None


def _received(connection: socket.socket, secret: bytes,
              count: int) -> list[int] | None:
    """Take what came; None: it is another's, or not all."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        while len(found) < count:
            message, ancillary, flags, _ = connection.recvmsg(
                _SECRET_BYTES + 1,
                socket.CMSG_SPACE(_MOST_AT_ONCE * _FD.size),
                socket.MSG_CMSG_CLOEXEC)
            # All that has come is open here: it is kept or closed.
            came = [fd for level, kind, data in ancillary
                    if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
                    for (fd,) in _FD.iter_unpack(
                        data[:len(data) - len(data) % _FD.size])]
            found += came
            if (not came or flags & socket.MSG_CTRUNC
                    or not hmac.compare_digest(message, secret)):
                break
        else:
            if len(found) == count:
                return found
    for descriptor in found:
        close(descriptor)
    return None


class Sender:
    """Sends open files to one process: the caller.

    :param caller: its process id; nobody else is sent anything
    """

    def __init__(self, caller: int) -> None:
        self._caller = caller
        # To a receiver each, the least recently used first. One that is in
        # use is not in it.
        self._connections: dict[Address, socket.socket] = {}

    def send(self, address: Address, descriptors: Sequence[int]) -> bool:
        """Send open files; False: they have to go another way."""
        connection = self._connections.pop(address, None)
        if connection is not None and self._sent(
                address, descriptors, connection):
            return True
        connection = self._connect(address)
        return connection is not None and self._sent(
            address, descriptors, connection)

    def close(self) -> None:
        while self._connections:
            _, connection = self._connections.popitem()
            connection.close()

    def _connect(self, address: Address) -> socket.socket | None:
        """Connect; None: it is not the caller who listens there."""
        name, secret = address
        if _CHOSEN.fullmatch(name) is None or len(secret) != _SECRET_BYTES:
            return None
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.setblocking(False)
            connection.connect(name)
            # 0 is a process that is not known.
            if 0 < self._caller == peer.credentials(connection)[0]:
                return connection
        except OSError:
            pass
        connection.close()
        return None

    def _sent(self, address: Address, descriptors: Sequence[int],
              connection: socket.socket) -> bool:
        try:
            for first in range(0, len(descriptors), _MOST_AT_ONCE):
                connection.sendmsg([address[1]], [(
                    socket.SOL_SOCKET, socket.SCM_RIGHTS, b''.join(
                        map(_FD.pack, descriptors[
                            first:first + _MOST_AT_ONCE])))])
        except OSError:
            connection.close()
            return False
        if self._connections.setdefault(address, connection) is not connection:
            connection.close()
        for old in list(self._connections)[:-_MOST_CONNECTIONS]:
            other = self._connections.pop(old, None)
            if other is not None:
                other.close()
        return True
