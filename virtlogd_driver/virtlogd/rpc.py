# SPDX-License-Identifier: Apache-2.0
"""virtlogd is called over its private protocol, as far as is needed here.

libvirt's src/logging/log_protocol.x and src/rpc/virnetprotocol.x; unchanged
since libvirt 1.3.3, where calls began to carry the path of the log. A message
is its own length, six words of header and a payload, all XDR (RFC 4506).
virtlogd answers processes of its own user only (root, for the system daemon):
log_daemon.c, virLogDaemonClientNew.

Every connection ends within its timeout, whatever virtlogd does.
"""

import array
import contextlib
import os
import socket
import stat
import struct
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from virtlogd_driver import exception

_PROGRAM = 0x87539319
_VERSION = 1
_DOMAIN_OPEN_LOG_FILE = 1
_DOMAIN_GET_LOG_FILE_POSITION = 2
_CALL = 0
_REPLY = 1
_REPLY_WITH_FDS = 5
_OK = 0
_ERROR = 1

_LENGTH = struct.Struct('>I')
_HEADER = struct.Struct('>IIiiIi')
_POSITION = struct.Struct('>QQ')

#: virtlogd's replies have some hundred bytes; libvirt's own limit for the
#: first message is 64 KiB (VIR_NET_MESSAGE_INITIAL).
_MAX_REPLY = 65536
#: Bytes of an error's text that are passed on.
_MOST_SAID = 1024
#: Descriptors that one message can bring (SCM_MAX_FD of the kernel): all have
#: to be received to be closed.
_MOST_FDS = 253
#: VIR_ERR_INTERNAL_ERROR: of a position call, "No open log file".
_NOT_OPEN = 1


_SEE_WHY = 'See what it says: journalctl -u virtlogd.'
_OTHER = ('Set [virtlogd] virtlogd_socket to the socket of virtlogd itself; '
          'if it is that, upgrade virtlogd-driver.')


@dataclass(frozen=True, slots=True)
class Position:
    """virtlogd writes a log here."""

    #: Inode of the current file.
    inode: int
    #: Its size in bytes.
    offset: int


class ConnectionClosed(exception.VirtlogdDown):
    """virtlogd ended a connection: it goes down, or executes itself anew."""


def _closed(path: str, reason: str) -> ConnectionClosed:
    return ConnectionClosed(
        f'virtlogd closed the connection on {path} ({reason}): it is going '
        f'down, or this process does not run as its user. {_SEE_WHY}')


def hung(path: str, timeout: float) -> exception.VirtlogdHung:
    """Say that virtlogd did not answer in time, in seconds."""
    return exception.VirtlogdHung(
        f'virtlogd did not answer on {path} within {timeout:g} s: guests stop '
        'once their log pipe is full. See whether its process is stopped '
        '(SIGCONT continues it) or the disk of the logs stalls.')


class _CallFailed(Exception):

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f'virtlogd answers: {message}. {_SEE_WHY}')
        self.code = code


def _string(value: str) -> bytes:
    data = os.fsencode(value)
    return _LENGTH.pack(len(data)) + data + bytes(-len(data) % 4)


def _error(payload: bytes) -> _CallFailed:
    """Give the head of virNetMessageError: code, domain, optional message."""
    code, _, has_message = struct.unpack_from('>iiI', payload)
    if not has_message:
        return _CallFailed(code, f'error {code}')
    (length,) = _LENGTH.unpack_from(payload, 12)
    text = payload[16:16 + min(length, _MOST_SAID)].decode(
        errors='backslashreplace')
    return _CallFailed(code, text)


class Connection:
    """A connection to virtlogd takes calls one after another.

    :param path: virtlogd's socket
    :param timeout: seconds for all that is done with this connection
    :raises VirtlogdDown: nothing listens there
    :raises VirtlogdHung: its queue of connections is full, and stays so
    :raises VirtlogdError: this process may not connect
    """

    def __init__(self, path: str, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        self._serial = 0
        self._socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(timeout)
        try:
            self._connect()
        except (FileNotFoundError, ConnectionRefusedError) as e:
            self.close()
            raise exception.VirtlogdDown(
                f'virtlogd does not listen on {path} ({e.strerror}): no guest '
                'can be started. Start it: systemctl start virtlogd.socket. '
                f'{_SEE_WHY}') from e
        except (TimeoutError, BlockingIOError) as e:
            self.close()
            raise hung(self._path, self._timeout) from e
        except OSError as e:
            self.close()
            raise exception.VirtlogdError(
                f'{path} cannot be connected to ({e.strerror or e}): virtlogd '
                f'answers root only. {_OTHER}') from e

    def _connect(self) -> None:
        while True:
            try:
                return self._socket.connect(self._path)
            except BlockingIOError:
                # The queue is full for now: many ask at the same time.
                if time.monotonic() > self._deadline:
                    raise
            time.sleep(0.01)

    def __enter__(self) -> 'Connection':
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    @contextlib.contextmanager
    def _io(self) -> Iterator[None]:
        left = self._deadline - time.monotonic()
        try:
            if left <= 0:
                # What comes byte by byte is always there in time.
                raise TimeoutError
            self._socket.settimeout(left)
            yield
        except TimeoutError as e:
            raise hung(self._path, self._timeout) from e
        except OSError as e:
            raise _closed(self._path, str(e)) from e

    def _receive(self, size: int) -> bytes:
        data = b''
        while len(data) < size:
            with self._io():
                part = self._socket.recv(size - len(data))
            if not part:
                raise _closed(self._path, 'end of file')
            data += part
        return data

    def _receive_fd(self) -> int:
        """A descriptor comes after its message, with one byte of its own.

        Those that come with other bytes, or are more, the kernel closes, as
        nothing here receives them.
        """
        fds = array.array('i')
        with self._io():
            data, ancillary, flags, _ = self._socket.recvmsg(
                1, socket.CMSG_SPACE(_MOST_FDS * fds.itemsize),
                socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(
                    content[:len(content) - len(content) % fds.itemsize])
        if len(fds) == 1 and not flags & socket.MSG_CTRUNC and (
                stat.S_ISFIFO(os.fstat(fds[0]).st_mode)):
            return fds[0]
        for fd in fds:
            os.close(fd)
        if not fds:
            raise self._not_understood(f'{data!r} instead of a descriptor')
        raise self._not_understood(
            f'{len(fds)} descriptors instead of that of a pipe')

    def _call(self, procedure: int, arguments: bytes,
              fd: bool = False) -> tuple[bytes, int]:
        """Call; the payload of the reply, and its descriptor or -1."""
        self._serial += 1
        message = _HEADER.pack(_PROGRAM, _VERSION, procedure, _CALL,
                               self._serial, _OK) + arguments
        with self._io():
            self._socket.sendall(
                _LENGTH.pack(_LENGTH.size + len(message)) + message)
        (length,) = _LENGTH.unpack(self._receive(_LENGTH.size))
        smallest = _LENGTH.size + _HEADER.size
        if not smallest <= length <= _MAX_REPLY:
            raise self._not_understood(f'{length} bytes')
        reply = self._receive(length - _LENGTH.size)
        program, version, got, kind, serial, status = _HEADER.unpack_from(
            reply)
        payload = reply[_HEADER.size:]
        if (program, version, got, serial) != (
                _PROGRAM, _VERSION, procedure, self._serial):
            raise self._not_understood('another call')
        if kind not in (_REPLY, _REPLY_WITH_FDS) or status not in (
                _OK, _ERROR):
            raise self._not_understood(f'type {kind}, status {status}')
        try:
            if status == _ERROR:
                raise _error(payload)
            count = 0
            if kind == _REPLY_WITH_FDS:
                (count,) = _LENGTH.unpack_from(payload)
                payload = payload[_LENGTH.size:]
        except struct.error as e:
            raise self._not_understood('a short reply') from e
        if count != fd:
            raise self._not_understood(f'{count} descriptors')
        return payload, self._receive_fd() if fd else -1

    def _not_understood(self, what: str) -> exception.VirtlogdError:
        return exception.VirtlogdError(
            f'virtlogd on {self._path} answered with {what}, which is not '
            f'the protocol of libvirt 1.3.3 to 12. {_OTHER}')

    def position(self, log: str) -> Position | None:
        """Tell where virtlogd writes a log, or None if it does not.

        virtlogd first writes out what is in the log's pipe.

        :param log: the path, as the domain's ``<log file>`` has it
        :raises VirtlogdDown: it went away
        :raises VirtlogdHung: it did not answer in time
        :raises VirtlogdError: it refused the call
        """
        try:
            payload, _ = self._call(_DOMAIN_GET_LOG_FILE_POSITION,
                                    _string(log) + _LENGTH.pack(0))
        except _CallFailed as e:
            if e.code == _NOT_OPEN:
                return None
            raise exception.VirtlogdError(str(e)) from e
        return self._position(payload)

    def open_log(self, driver: str, domain: uuid.UUID, name: str,
                 log: str) -> tuple[int, Position]:
        """Have virtlogd open a log, to append to it.

        :param driver: libvirt's name of the hypervisor driver, "qemu"
        :param domain: UUID of the domain
        :param name: its libvirt name
        :param log: the path
        :returns: the descriptor of the pipe to write to, and the position
        :raises VirtlogdError: it refused; EBUSY where the log is open
            already. VirtlogdDown and VirtlogdHung as for position.
        """
        try:
            payload, pipe = self._call(
                _DOMAIN_OPEN_LOG_FILE,
                _string(driver) + domain.bytes + _string(name)
                + _string(log) + _LENGTH.pack(0), fd=True)
        except _CallFailed as e:
            raise exception.VirtlogdError(str(e)) from e
        try:
            return pipe, self._position(payload)
        except exception.VirtlogdError:
            os.close(pipe)
            raise

    def _position(self, payload: bytes) -> Position:
        if len(payload) != _POSITION.size:
            raise self._not_understood('a short reply')
        return Position(*_POSITION.unpack(payload))

    def ping(self) -> None:
        """Make the cheapest call: whether virtlogd answers at all.

        :raises VirtlogdError: as for position
        """
        self.position('')
