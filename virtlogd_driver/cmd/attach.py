# SPDX-License-Identifier: Apache-2.0
"""``virtlogd-console attach``."""

import contextlib
import os
import socket
import sys
from typing import Any

from virtlogd_driver import exception
from virtlogd_driver.cmd import (
    console_stream,
    control_sequences,
    interactive,
    show,
    terminal,
)
from virtlogd_driver.cmd.host import (
    Host,
    SerialPort,
    alias,
    serial_port,
)
from virtlogd_driver.virtlogd import viewer

#: Seconds for a TCP connection on this host.
_TIMEOUT = 5.0
#: Where to connect to what listens on any address.
_ANY = {'0.0.0.0': '127.0.0.1', '::': '::1'}  # noqa: S104


def run(host: Host, arguments: Any) -> int:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise exception.HostError(
            'attach needs a terminal: use "follow" to read, and connect to '
            'the address that "list" shows to write.')
    port = serial_port(host.guest(arguments.guest), arguments.port)
    keys, screen = sys.stdin.fileno(), sys.stdout.fileno()
    neutral = control_sequences.Neutraliser(
        colour=terminal.has_colour(sys.stdout), screen=True)

    def shown(data: bytes) -> bytes:
        return data if arguments.raw else neutral.text(data).encode()

    def connect() -> socket.socket:
        return _connect(host, port.guest.uuid, port.number)

    _say_others(port)
    print(f'{port.label}: {_key(arguments.escape)} leaves.', flush=True)
    with contextlib.suppress(exception.LogError):
        for data in show.last_lines(host, port.log, arguments.lines).pieces:
            os.write(screen, shown(data or b''))
    try:
        interactive.run(connect, shown, arguments.escape, keys, screen)
    except OSError as error:
        raise exception.HostError(
            f'The console of guest {port.guest.name} cannot be reached: '
            f'{error.strerror}.') from error
    finally:
        if not arguments.raw:
            os.write(screen, control_sequences.RESET_SCREEN.encode())
    print(f'\r\nleft {port.label}')
    return 0


def _key(escape: bytes) -> str:
    return control_sequences.visible(escape.decode('ascii'))


def _say_others(port: SerialPort) -> None:
    """QEMU serves one viewer at a time; another waits, and sees nothing."""
    if port.device.address is None:
        return
    with contextlib.suppress(OSError):
        for other in viewer.viewers([port.device.address]):
            address, number = other.peer
            print(f'{address} (port {number}) is at this console: nothing '
                  f'comes until it leaves.')


def _connect(host: Host, uuid: str,
             number: int) -> socket.socket:
    """Connect to a port of a guest as it is now.

    :raises GuestNotFound: it is gone
    :raises HostError: it does not run, or has no interactive console
    :raises OSError: nothing listens
    """
    guest = host.guest(uuid)
    port = serial_port(guest, number)
    if not guest.active:
        raise exception.HostError(
            f'Guest {guest.name} is {guest.state}: start it first, or see '
            f'"virtlogd-console show".')
    if port.device.address is not None:
        address, service = port.device.address
        return socket.create_connection(
            (_ANY.get(address, address), service), _TIMEOUT)
    if port.device.type == 'pty':
        return console_stream.connect(
            host.connection, uuid, alias(port))
    raise exception.HostError(
        f'Serial port {number} of guest {guest.name} is of type '
        f'{port.device.type}: it is not interactive.')
