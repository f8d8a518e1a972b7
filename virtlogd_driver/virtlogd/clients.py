# SPDX-License-Identifier: Apache-2.0
"""The kernel counts the connections to virtlogd's socket.

With as many connections as max_clients of virtlogd.conf allows libvirt's
daemons accept no other (src/rpc/virnetserver.c): the kernel takes it, and
nobody answers. That looks as if virtlogd hung, though it writes every log.
"""

import os
import socket
import struct
from dataclasses import dataclass

from virtlogd_driver.virtlogd import sock_diag

#: unix_diag_req and unix_diag_msg (linux/unix_diag.h).
_REQUEST = struct.Struct('=BBxxIIIII')
_SOCKET = struct.Struct('=BBBxIII')
_SHOW_VFS, _SHOW_RQLEN = 0x2, 0x10
_VFS, _RQLEN = 1, 4
_PAIR = struct.Struct('=II')


@dataclass(frozen=True, slots=True)
class Clients:
    """So many clients are connected to a socket."""

    #: Connections that its daemon has accepted.
    accepted: int
    #: Connections that it has not.
    waiting: int


def count(socket_path: str) -> Clients:
    """Count the connections to a unix socket of this network namespace.

    :raises OSError: there is no such socket, or the kernel does not tell
    """
    status = os.stat(socket_path)
    name = _PAIR.pack(
        status.st_ino & 0xffffffff,
        # As the kernel itself has it (linux/kdev_t.h).
        os.major(status.st_dev) << 20 | os.minor(status.st_dev))
    accepted = waiting = 0
    request = _REQUEST.pack(
        socket.AF_UNIX, 0, 1 << sock_diag.ESTABLISHED | 1 << sock_diag.LISTEN,
        0, _SHOW_VFS | _SHOW_RQLEN, 0, 0)
    for error, payload in sock_diag.ask(
            sock_diag.BY_FAMILY, sock_diag.NLM_F_DUMP, request):
        if error is not None:
            raise error
        _, _, state, _, _, _ = _SOCKET.unpack_from(payload)
        found = sock_diag.attributes(payload[_SOCKET.size:])
        if found.get(_VFS) != name:
            continue
        if state == sock_diag.ESTABLISHED:
            accepted += 1
        elif _RQLEN in found:
            waiting += _PAIR.unpack_from(found[_RQLEN])[0]
    return Clients(accepted, waiting)


def refused(socket_path: str, max_clients: int) -> str:
    """Tell why virtlogd does not accept a connection that waits.

    :param max_clients: of virtlogd.conf
    :returns: the reason and the remedy; empty: it is not max_clients
    """
    try:
        found = count(socket_path)
    except OSError:
        return ''
    # It accepts one even where none is allowed: it counts afterwards.
    if found.accepted < max(max_clients, 1):
        return ''
    return (
        f'virtlogd takes no more connections: it has {found.accepted}, and '
        f'max_clients is {max_clients} in virtlogd.conf. Logs are written, '
        'but no guest starts. See who is connected (ss -xp | grep '
        'virtlogd-sock) and end what does not belong there; or raise '
        'max_clients and reload virtlogd (never restart it).')
