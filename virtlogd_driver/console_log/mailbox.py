# SPDX-License-Identifier: Apache-2.0
"""Bytes from a privileged process, beside privsep's own answers.

privsep packs an answer into one message, reads it in pieces of 4 KiB, copies
it several times on the way, and writes it to its log at debug level. So what
is large goes another way: the privileged process puts it into an anonymous
file in memory (memfd_create(2)) and passes the descriptor of that to a socket
of the caller's (unix(7), SCM_RIGHTS).

The socket has an abstract name that the kernel chose, so anybody in its
network namespace may send to it: only what has the secret, which the
privileged process was told in the call, is taken. Where it cannot be sent to
(another network namespace, full, a security module) nothing is lost: the
answer goes privsep's way.
"""

import contextlib
import os
import secrets
import socket
import struct
from types import TracebackType
from typing import Self

#: Name of the socket, and the secret: what msgpack can carry.
Address = tuple[bytes, bytes]

#: Bytes from which on it takes less time and memory than privsep's way.
WORTHWHILE = 512 * 1024

_SECRET_BYTES = 16

# socket.send_fds and recv_fds ignore flags and address up to Python 3.11.
_FD = struct.Struct('i')

#: Datagrams that are looked through: Linux queues 10 or so (net.unix.
#: max_dgram_qlen).
_MOST_DATAGRAMS = 1024


class Mailbox:
    """Where the caller receives the bytes; for one call."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(_SECRET_BYTES)
        self._socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.bind('')

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

    def take(self) -> bytes | None:
        """What was posted before now; None: nothing that can be trusted."""
        for _ in range(_MOST_DATAGRAMS):
            try:
                message, ancillary, _, _ = self._socket.recvmsg(
                    _SECRET_BYTES + 1, socket.CMSG_SPACE(_FD.size),
                    socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                break
            descriptors = [
                fd for level, kind, data in ancillary
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
                for (fd,) in _FD.iter_unpack(data)]
            try:
                if descriptors and secrets.compare_digest(
                        message, self._secret):
                    return _content(descriptors[0])
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
        return None


def _content(descriptor: int) -> bytes | None:
    size = os.fstat(descriptor).st_size
    data = os.pread(descriptor, size, 0)
    return data if len(data) == size else None


def post(address: Address | None, data: bytes) -> bool:
    """Send bytes to a mailbox; False: they have to go another way.

    :param address: None: there is no mailbox
    """
    if address is None or len(data) < WORTHWHILE:
        return False
    name, secret = address
    with contextlib.ExitStack() as stack:
        try:
            sender = stack.enter_context(
                socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            descriptor = os.memfd_create('console log')
            stack.callback(os.close, descriptor)
            written = 0
            with memoryview(data) as view:
                while written < len(data):
                    written += os.write(descriptor, view[written:])
            sender.sendmsg(
                [secret], [(socket.SOL_SOCKET, socket.SCM_RIGHTS,
                            _FD.pack(descriptor))],
                socket.MSG_DONTWAIT, name)
        except OSError:
            return False
    return True
