# SPDX-License-Identifier: Apache-2.0
"""Open files from a privileged process to the one that asked for them.

privsep's answers carry values, no descriptors; so those go beside them, over a
socket of the caller's (unix(7), SCM_RIGHTS).

* The privileged process sends to nobody but its caller: the address has to be
  an abstract one that the kernel chose, so none that any service has; and the
  process that listens there has to be the one at the other end of privsep's
  own socket. Nothing is sent before that is known.
* Anybody in the same network namespace may connect to the caller's socket: it
  takes only what comes with the secret that it has told in the call.
* Nothing waits, on either side: all is sent before privsep's answer.

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

#: Name of the socket, and the secret: what msgpack can carry.
Address = tuple[bytes, bytes]

_SECRET_BYTES = 16

#: Descriptors in one message: the kernel's limit is 253 (SCM_MAX_FD).
_MOST_AT_ONCE = 128

#: Connections that wait to be looked at, those of strangers included.
_BACKLOG = 16

#: What the kernel calls a socket that is bound to no name (autobind).
_CHOSEN = re.compile(rb'\0[0-9a-f]{5}')

_FD = struct.Struct('i')
#: struct ucred: process, user, group.
_CREDENTIALS = struct.Struct('iII')


class Receiver:
    """Where the caller receives open files; for one call."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(_SECRET_BYTES)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.setblocking(False)
            self._socket.bind('')
            self._socket.listen(_BACKLOG)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
            self, kind: type[BaseException] | None,
            error: BaseException | None,
            traceback: TracebackType | None) -> None:
        self._socket.close()

    @property
    def address(self) -> Address:
        return self._socket.getsockname(), self._secret

    def take(self, count: int) -> list[int] | None:
        """The descriptors that were sent before now, which are the caller's.

        :param count: how many there have to be; nothing is sent for none
        :returns: None: they have not come, or not all of them
        """
        if count == 0:
            return []
        for _ in range(_BACKLOG + 1):
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return None
            with connection:
                connection.setblocking(False)
                found = _received(connection, self._secret, count)
            if found is not None:
                return found
        return None


def _received(connection: socket.socket, secret: bytes,
              count: int) -> list[int] | None:
    """None: it is somebody else, or they have not all come."""
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


def send(address: Address, descriptors: Sequence[int], caller: int) -> bool:
    """Send open files to the caller; False: they have to go another way.

    :param caller: process id; nobody else is sent anything
    """
    name, secret = address
    if _CHOSEN.fullmatch(name) is None or len(secret) != _SECRET_BYTES:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sender:
        sender.setblocking(False)
        try:
            sender.connect(name)
            if process_at(sender) != caller:
                return False
            for first in range(0, len(descriptors), _MOST_AT_ONCE):
                sender.sendmsg([secret], [(
                    socket.SOL_SOCKET, socket.SCM_RIGHTS, b''.join(
                        map(_FD.pack, descriptors[
                            first:first + _MOST_AT_ONCE])))])
        except OSError:
            return False
    return True


def process_at(connected: socket.socket) -> int:
    """The process that listened at the other end of a socket; 0: unknown.

    It is unknown in another process namespace.
    """
    process, _ = credentials_at(connected)
    return process


def credentials_at(connected: socket.socket) -> tuple[int, int]:
    """Process and user that listened at the other end of a socket."""
    process, user, _ = _CREDENTIALS.unpack(connected.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return process, user
