# SPDX-License-Identifier: Apache-2.0
"""The kernel says who is at the other end of a Unix socket (unix(7))."""

import socket
import struct

#: struct ucred: process, user, group.
_CREDENTIALS = struct.Struct('iII')


def credentials(connected: socket.socket) -> tuple[int, int]:
    """Give process and user at the other end of a socket.

    Of one that was connected, who listened there. The process is 0 where it is
    in another process namespace.
    """
    process, user, _ = _CREDENTIALS.unpack(connected.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return process, user
