# SPDX-License-Identifier: Apache-2.0
"""A socket carries a guest's pseudo terminal, which libvirt opens.

libvirt lets one be at it at a time, and so does not hand half of the guest's
output to somebody else.
"""

import contextlib
import socket
import threading
from typing import Any

from virtlogd_driver import exception
from virtlogd_driver.node import hypervisor

#: VIR_DOMAIN_CONSOLE_SAFE: refuse where it cannot be had alone.
_SAFE = 2
#: VIR_ERR_OPERATION_FAILED: of openConsole, somebody has it.
_IN_USE = 9


def connect(connection: Any, uuid: str, alias: str | None) -> socket.socket:
    """Open the pseudo terminal of a running guest.

    :param connection: to libvirt
    :param alias: libvirt's name of the device; None: the first console
    :raises GuestNotFound: it is gone
    :raises HostError: it does not run, somebody is at its console already
    """
    try:
        with hypervisor.translated():
            stream = connection.newStream()
            domain = connection.lookupByUUIDString(uuid)
            domain.openConsole(alias, stream, _SAFE)
    except exception.HostError as error:
        code = getattr(error.__cause__, 'get_error_code', lambda: None)()
        if code != _IN_USE:
            raise
        raise exception.HostError(
            f'Somebody is at this console of guest {domain.name()} already, '
            f'with "virsh console" or "virtlogd-console attach": libvirt '
            f'gives a pseudo terminal to one at a time. "virtlogd-console '
            f'follow" shows what it writes; "virsh console --force" '
            f'disconnects the other one.') from error
    ours, theirs = socket.socketpair()
    for pump in (_from_guest, _to_guest):
        threading.Thread(target=pump, args=(stream, theirs),
                         daemon=True).start()
    return ours


def _from_guest(stream: Any, there: socket.socket) -> None:
    with (contextlib.suppress(exception.VirtlogdDriverError, OSError),
          hypervisor.translated()):
        while data := stream.recv(1 << 16):
            there.sendall(data)
    _shut(there)


def _to_guest(stream: Any, there: socket.socket) -> None:
    with (contextlib.suppress(exception.VirtlogdDriverError, OSError),
          hypervisor.translated()):
        while data := there.recv(4096):
            while data:
                data = data[stream.send(data):]
        stream.abort()
    _shut(there)


def _shut(there: socket.socket) -> None:
    with contextlib.suppress(OSError):
        there.shutdown(socket.SHUT_RDWR)
