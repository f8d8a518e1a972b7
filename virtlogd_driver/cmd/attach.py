# SPDX-License-Identifier: Apache-2.0
"""``virtlogd-console attach`` connects to an interactive console."""

import contextlib
import os
import socket
import sys
from collections.abc import Callable
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
    serial_port,
)
from virtlogd_driver.cmd.telnet import Telnet
from virtlogd_driver.relay import control
from virtlogd_driver.virtlogd.port import text

#: Seconds for a connection on this host.
_TIMEOUT = 5.0
#: Where to connect to what listens on any address.
_LOOPBACK = {'0.0.0.0': ('127.0.0.1',),  # noqa: S104
             '::': ('::1', '127.0.0.1')}


def run(host: Host, arguments: Any) -> int:
    on_terminal = sys.stdout.isatty()
    pipe = (None if sys.stdin.isatty()
            else interactive.Pipe(watch=arguments.watch))
    port = serial_port(host.guest(arguments.guest), arguments.port)
    label = control_sequences.visible(port.label)
    keys, screen = sys.stdin.fileno(), sys.stdout.fileno()
    neutral = control_sequences.Neutraliser(
        colour=terminal.has_colour(sys.stdout), screen=True)

    def shown(data: bytes) -> bytes:
        return (data if arguments.raw or not on_terminal
                else terminal.encode(neutral.text(data)))

    def say(text: str) -> None:
        print(f'virtlogd-console: {control_sequences.visible(text)}',
              file=sys.stderr, flush=True)

    def tell_relay(connected: socket.socket) -> None:
        if not (arguments.take_over or arguments.watch):
            return
        try:
            control.ask(host.relay_socket, control.Request(
                'take' if arguments.take_over else 'give',
                connected.getsockname()[:2], connected.getpeername()[1]))
        except exception.HostError as error:
            if arguments.take_over:
                raise
            # It watches all the same.
            say(f'{error} With relay_writers = first nobody types while '
                f'this viewer is the first.')

    def connect() -> interactive.Console:
        return _connect(host, port.guest.uuid, port.number, tell_relay)

    # Said before anything else is.
    check(port)
    if arguments.take_over and not _is_relayed(host, port):
        raise exception.HostError(
            f'Guest {port.guest.name} is not relayed: QEMU serves one viewer, '
            f'who types. "virtlogd-console viewers {port.guest.name}" shows '
            f'who that is, and disconnects it.')
    _say_others(host, port)
    if pipe is None:
        print(f'{label}: ' + ('what is typed is not sent; '
                              if arguments.watch else '')
              + f'{_key(arguments.escape)} leaves.', flush=True,
              file=sys.stdout if on_terminal else sys.stderr)
    # The relay shows the last lines itself.
    with contextlib.suppress(exception.LogError):
        for data in () if _is_relayed(host, port) else show.last_lines(
                host, port.log, arguments.lines).pieces:
            _write(screen, shown(data or b''))
    try:
        try:
            console = connect()
        except OSError as error:
            raise exception.HostError(
                f'The console of guest {port.guest.name} cannot be reached: '
                f'{error.strerror or error}.') from error
        left = interactive.run(console, connect, shown, arguments.escape,
                               keys, screen, watch=arguments.watch, pipe=pipe,
                               say=None if on_terminal else say)
    finally:
        if on_terminal:
            _write(screen, control_sequences.RESET_SCREEN.encode())
    gone = f'{label} is on this host no more: it was migrated, or deleted'
    if on_terminal:
        print(f'\r\nleft {label}' if left else f'\r\n{gone}')
    elif not left:
        say(gone)
    return 0


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data):]


def _key(escape: bytes) -> str:
    return control_sequences.visible(escape.decode('ascii'))


def _say_others(host: Host, port: SerialPort) -> None:
    """Say who else is there: QEMU serves one, another sees nothing.

    The relay serves many.
    """
    if port.device.address is None:
        return
    listens, _ = port.device.address
    with contextlib.suppress(exception.HostError):
        for other in host.viewers([port])[0]:
            print(f'{text(other.peer)} is at this console' + (
                ', too.' if host.is_relayed(listens)
                else ': nothing comes until it leaves.'),
                file=sys.stdout if sys.stdout.isatty() else sys.stderr)


def _is_relayed(host: Host, port: SerialPort) -> bool:
    return port.device.address is not None and host.is_relayed(
        port.device.address[0])


def check(port: SerialPort) -> None:
    """Tell whether the port can be attached to, when its guest runs.

    :raises HostError: why it cannot
    """
    device = port.device
    source = device.source
    what = f'Serial port {port.number} of guest {port.guest.name}'
    if device.unclear:
        raise exception.HostError(f'{what} is not understood. '
                                  f'{device.unclear}')
    if device.type in ('tcp', 'unix') and source is not None and (
            source.mode == 'connect'):
        where = source.path or f'{source.host}:{source.service}'
        raise exception.HostError(
            f'{what} connects out (mode="connect"), to {where}: what listens '
            f'there has its console. "virtlogd-console follow" shows what it '
            f'writes, if it has a log.')
    if (source is not None and source.tls) or (
            device.type == 'tcp' and device.protocol not in ('raw', 'telnet')):
        raise exception.HostError(
            f'{what} is encrypted (TLS), which attach does not speak: use '
            f'"openssl s_client", or virsh.')
    if device.type not in ('tcp', 'unix', 'pty') or (
            device.type != 'pty' and device.address is None
            and device.socket_path is None):
        raise exception.HostError(
            f'{what} is of type {device.type}: it is not interactive.')


def _connect(host: Host, uuid: str, number: int,
             tell_relay: Callable[[socket.socket], None]
             ) -> interactive.Console:
    """Connect to a port of a guest as it is now.

    :param tell_relay: is given the connection where it is one to the relay
    :raises GuestNotFound: it is gone
    :raises HostError: it does not run, or has no interactive console
    :raises OSError: nothing listens
    """
    try:
        guest = host.guest(uuid)
    except exception.HostError:
        # The next attempt is made with another libvirtd.
        host.forget_connection()
        raise
    port = serial_port(guest, number)
    check(port)
    if not guest.active:
        raise exception.HostError(
            f'Guest {guest.name} is {guest.state}: start it first, or see '
            f'"virtlogd-console show".')
    device = port.device
    telnet = Telnet() if device.protocol == 'telnet' else None
    if device.address is not None:
        address, service = device.address
        connected = _connect_tcp(host.viewers_address(address), service)
        try:
            if host.is_relayed(address):
                tell_relay(connected)
        except BaseException:
            connected.close()
            raise
        return interactive.Console(connected, telnet)
    if device.socket_path is not None:
        return interactive.Console(_connect_unix(device.socket_path), telnet)
    return interactive.Console(
        console_stream.connect(host.connection, uuid, device.alias))


def _connect_tcp(host: str, service: int) -> socket.socket:
    *others, last = _LOOPBACK.get(host, (host,))
    for address in others:
        with contextlib.suppress(OSError):
            return socket.create_connection((address, service), _TIMEOUT)
    return socket.create_connection((last, service), _TIMEOUT)


def _connect_unix(path: str) -> socket.socket:
    connected = socket.socket(socket.AF_UNIX)
    try:
        connected.settimeout(_TIMEOUT)
        connected.connect(path)
    except BaseException:
        connected.close()
        raise
    return connected
