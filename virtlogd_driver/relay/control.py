# SPDX-License-Identifier: Apache-2.0
"""What the relay is asked to change of who may type at a console.

A client connects to a Unix socket that only the relay's user and root may
connect to, sends one line of JSON, and is answered with one:

* ``{"turn": "take", "viewer": ["192.0.2.7", 40000], "port": 10000}``: this
  viewer, as the relay sees its address, of the console at this TCP port, may
  type from now on. With "give" it may not, and only watches.
* ``{}``: it is done, or ``{"error": "why not"}``.
"""

import asyncio
import contextlib
import errno
import json
import logging
import os
import socket
import stat
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from virtlogd_driver import exception
from virtlogd_driver.relay.viewer import Peer

LOG = logging.getLogger(__name__)

Turn = Literal['take', 'give']

#: Bytes of a request, or an answer, at most.
_LONGEST = 4096
#: Seconds for a client to ask and to be answered.
PATIENCE = 5.0
#: Clients that wait to be heard.
_BACKLOG = 16


@dataclass(frozen=True, slots=True)
class Request:
    """A request says whose turn it is to type, or is not any more."""

    turn: Turn
    #: The viewer's address, numeric, and TCP port.
    viewer: Peer
    #: TCP port of the console.
    port: int


#: Does what is asked for; HostError where it cannot.
Handle = Callable[[Request], Awaitable[None]]


def parse(line: bytes) -> Request:
    """Read a request.

    :raises ValueError: it is none
    """
    found = _object(line)
    match found:
        case {'turn': 'take' | 'give' as turn,
              'viewer': [str(host), int(number)],
              'port': int(port)} if len(found) == 3:
            return Request(turn, (host, number), port)
    raise ValueError('not a request that this relay knows')


def _object(line: bytes) -> dict[str, Any]:
    """:raises ValueError: it is not one object of JSON in a line"""
    if not line.endswith(b'\n'):
        raise ValueError('not a whole line')
    try:
        found = json.loads(line)
    except RecursionError as error:
        raise ValueError('too deep') from error
    if not isinstance(found, dict):
        raise ValueError('not an object')
    return found


def _line(**values: object) -> bytes:
    return json.dumps(values).encode() + b'\n'


# The relay's side

def listen(path: str) -> socket.socket | None:
    """Make the socket, for this user and root.

    :returns: None where it cannot be made, which is said: viewers are served
        all the same
    """
    made = socket.socket(socket.AF_UNIX)
    try:
        # bind(2) gives it to the file, less the umask.
        os.fchmod(made.fileno(), 0o600)
        with contextlib.suppress(FileNotFoundError):
            # One that ended without removing it.
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                _check_nobody_listens(path)
                os.unlink(path)
        made.bind(path)
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        LOG.error(
            '[virtlogd] relay_socket = %s cannot be listened on (%s): nobody '
            'can take the turn to type. Its directory has to be there and '
            'writable for this user; systemd makes it (RuntimeDirectory=). '
            'Nor may another relay run. Restart the relay then',
            path, error.strerror or error)
        return None
    return made


def _check_nobody_listens(path: str) -> None:
    """Refuse a socket through which another relay is asked.

    :raises OSError: somebody listens there
    """
    with socket.socket(socket.AF_UNIX) as asking:
        # Not to wait where many do.
        asking.setblocking(False)
        if asking.connect_ex(path) not in (errno.ECONNREFUSED, errno.ENOENT):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


async def serve(made: socket.socket, handle: Handle) -> None:
    """Answer clients until this is cancelled."""
    async def answer(reader: asyncio.StreamReader,
                     writer: asyncio.StreamWriter) -> None:
        # Whatever a client does, or does not.
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(PATIENCE):
                writer.write(await _answer(reader, handle))
                await writer.drain()
        writer.close()

    path = made.getsockname()
    server = await asyncio.start_unix_server(
        answer, sock=made, limit=_LONGEST)
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        server.close()
        with contextlib.suppress(OSError):
            os.unlink(path)


async def _answer(reader: asyncio.StreamReader, handle: Handle) -> bytes:
    try:
        await handle(parse(await reader.readline()))
    except (ValueError, exception.HostError) as error:
        return _line(error=str(error))
    return _line()


# The client's side

def ask(path: str, request: Request) -> None:
    """Ask the relay, and wait until it is done; for PATIENCE at most.

    :param path: ``[virtlogd] relay_socket``
    :raises HostError: it refuses, or cannot be asked
    """
    deadline = time.monotonic() + 2 * PATIENCE
    try:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(PATIENCE)
            asking.connect(path)
            asking.sendall(_line(turn=request.turn, viewer=request.viewer,
                                 port=request.port))
            line = b''
            while not line.endswith(b'\n') and len(line) < _LONGEST:
                asking.settimeout(max(0.01, deadline - time.monotonic()))
                data = asking.recv(_LONGEST)
                if not data:
                    break
                line += data
        error = _object(line).get('error', '')
    except OSError as failed:
        raise exception.HostError(_unreachable(path, failed)) from failed
    except ValueError as failed:
        raise exception.HostError(
            f'What answers at [virtlogd] relay_socket = {path} is no relay, '
            'or it has just ended: see virtlogd-console-relay.service.'
            ) from failed
    if error:
        raise exception.HostError(f'The relay refuses: {error}.')


def _unreachable(path: str, error: OSError) -> str:
    why = error.strerror or 'no answer'
    if error.errno in (errno.EACCES, errno.EPERM):
        remedy = 'Only root and the user of the relay may ask it.'
    else:
        remedy = ('See whether virtlogd-console-relay.service runs, and what '
                  'its log says of relay_socket.')
    return (f'The relay cannot be asked at [virtlogd] relay_socket = {path} '
            f'({why}). {remedy}')
