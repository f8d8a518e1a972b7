# SPDX-License-Identifier: Apache-2.0
"""The kernel answers questions about sockets (sock_diag(7)).

Asking needs no privilege.
"""

import os
import socket
import struct
from collections.abc import Iterator

_NETLINK_SOCK_DIAG = 4
_NLM_F_REQUEST = 0x1
_NLMSG_ERROR, _NLMSG_DONE = 2, 3

BY_FAMILY = 20
DESTROY = 21
NLM_F_ACK, NLM_F_DUMP = 0x4, 0x300

#: States of a socket (net/tcp_states.h); unix sockets have them, too.
ESTABLISHED, CLOSE_WAIT, LISTEN = 1, 8, 10

_MESSAGE = struct.Struct('=IHHII')
_ATTRIBUTE = struct.Struct('=HH')


def ask(message_type: int, flags: int, request: bytes
        ) -> Iterator[tuple[OSError | None, bytes]]:
    """Send one request, and read the messages of the answer.

    :param message_type: BY_FAMILY or DESTROY
    :param flags: NLM_F_ACK or NLM_F_DUMP
    :returns: what each message carries; an error, or None for an
        acknowledgement, ends the answer and carries nothing
    :raises OSError: the kernel has no sock_diag, or does not answer
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM,
                       _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(5)
        netlink.send(_MESSAGE.pack(_MESSAGE.size + len(request), message_type,
                                   _NLM_F_REQUEST | flags, 1, 0) + request)
        while True:
            data = netlink.recv(1 << 20)
            while data:
                length, kind, _, _, _ = _MESSAGE.unpack_from(data)
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    yield _error(data[_MESSAGE.size:length]), b''
                    return
                yield None, data[_MESSAGE.size:length]
                data = data[(length + 3) & ~3:]


def _error(payload: bytes) -> OSError | None:
    (negative,) = struct.unpack_from('=i', payload)
    return OSError(-negative, os.strerror(-negative)) if negative else None


def attributes(data: bytes) -> dict[int, bytes]:
    """Give the attributes of a message, by their number."""
    found = {}
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        found[kind] = data[_ATTRIBUTE.size:length]
        data = data[max((length + 3) & ~3, _ATTRIBUTE.size):]
    return found
