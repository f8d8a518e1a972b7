# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.lab.mirror DIRECTORY PID COMMAND...`` runs it beside FUSE.

The command gets a mount namespace of its own, where the directory is a file
system in user space that shows what the directory really has. It can be read.
Whoever stops the process that serves it, whose id is written to the file PID,
has a file system that hangs: for this command alone, as one of another machine
may. The server ends with the command.

Of a file whose name, and the offset and size of some bytes in it, are in
BAD_SECTORS, separated by colons, these bytes cannot be read: the request that
has one of them fails.

The protocol is that of linux/fuse.h.
"""

import ctypes
import errno
import os
import signal
import stat
import struct
import sys
from pathlib import Path

from tests.lab.wait import until

# linux/fuse.h
_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ, _STATFS = 1, 2, 3, 14, 15, 17
_RELEASE, _FLUSH, _INIT, _OPENDIR, _READDIR, _RELEASEDIR = (
    18, 25, 26, 27, 28, 29)
_INTERRUPT, _BATCH_FORGET = 36, 42
_NOT_ANSWERED = (_FORGET, _INTERRUPT, _BATCH_FORGET)
_ROOT = 1
_IN = struct.Struct('=IIQQIIIHH')
_OUT = struct.Struct('=IiQ')
_ATTR = struct.Struct('=6Q10I')
_DIRENT = struct.Struct('=QQII')
#: Each read asks the server: nothing is in the page cache.
_DIRECT_IO = 1
_BUFFER = (1 << 20) + (1 << 16)

_CLONE_NEWNS = 0x00020000
_PR_SET_PDEATHSIG = 1


class _Server:
    """It answers for one directory without directories in it."""

    def __init__(self, device: int, directory: int) -> None:
        """
        :param device: descriptor of /dev/fuse
        :param directory: descriptor of the directory
        """
        self._device = device
        self._directory = directory
        #: Inode of the file that cannot be read, and where not.
        self._bad: tuple[int, range] | None = None
        if bad := os.environ.get('BAD_SECTORS'):
            name, offset, size = bad.split(':')
            self._bad = (
                os.stat(name, dir_fd=directory).st_ino,
                range(int(offset), int(offset) + int(size)))
        #: Descriptors of files by inode, which is their node as well.
        self._nodes = {_ROOT: directory}
        self._answers = {
            _INIT: self._init, _LOOKUP: self._lookup,
            _GETATTR: self._getattr, _OPEN: self._open, _READ: self._read,
            _STATFS: self._statfs, _RELEASE: self._nothing,
            _FLUSH: self._nothing, _OPENDIR: self._opendir,
            _READDIR: self._readdir, _RELEASEDIR: self._nothing}

    def serve(self) -> None:
        """Answer until it is unmounted."""
        while True:
            try:
                request = os.read(self._device, _BUFFER)
            except InterruptedError:
                continue
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno in (errno.ENOENT, errno.EAGAIN):
                    continue   # it was interrupted meanwhile
                raise
            _, code, unique, node, *_ = _IN.unpack_from(request)
            if code in _NOT_ANSWERED:
                continue
            failed, answer = 0, b''
            try:
                if code not in self._answers:
                    raise OSError(errno.ENOSYS, '')
                answer = self._answers[code](node, request[_IN.size:])
            except OSError as error:
                failed = error.errno or errno.EIO
            try:
                os.write(self._device, _OUT.pack(
                    _OUT.size + len(answer), -failed, unique) + answer)
            except FileNotFoundError:
                continue   # nobody waits for it any more

    def _init(self, _: int, arguments: bytes) -> bytes:
        major, _, read_ahead, _ = struct.unpack_from('=4I', arguments)
        return struct.pack('=4I2H2I2H8I', major, 31, read_ahead, 0, 16, 12,
                           1 << 20, 1, 0, 0, *[0] * 8)

    def _lookup(self, _: int, arguments: bytes) -> bytes:
        name = arguments.rstrip(b'\0')
        descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC,
                             dir_fd=self._directory)
        inode = os.fstat(descriptor).st_ino
        known = self._nodes.setdefault(inode, descriptor)
        if known is not descriptor:
            os.close(descriptor)
        return struct.pack('=4Q2I', inode, 0, 0, 0, 0, 0) + _attributes(known)

    def _getattr(self, node: int, _: bytes) -> bytes:
        return struct.pack('=Q2I', 0, 0, 0) + _attributes(self._nodes[node])

    def _open(self, node: int, _: bytes) -> bytes:
        os.stat(f'/proc/self/fd/{self._nodes[node]}')
        return struct.pack('=QIi', 0, _DIRECT_IO, 0)

    def _read(self, node: int, arguments: bytes) -> bytes:
        _, offset, size = struct.unpack_from('=QQI', arguments)
        if self._bad is not None:
            inode, bad = self._bad
            if (node == inode and offset < bad.stop
                    and bad.start < offset + size):
                raise OSError(errno.EIO, '')
        descriptor = os.open(f'/proc/self/fd/{self._nodes[node]}',
                             os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)

    def _statfs(self, _: int, __: bytes) -> bytes:
        return struct.pack('=5Q10I', 1, 0, 0, 1, 1, 4096, 255, 4096,
                           *[0] * 7)

    def _opendir(self, _: int, __: bytes) -> bytes:
        return struct.pack('=QIi', 0, 0, 0)

    def _readdir(self, _: int, arguments: bytes) -> bytes:
        _, offset, size = struct.unpack_from('=QQI', arguments)
        found = b''
        names = sorted(os.listdir(self._directory))[offset:]
        for number, name in enumerate(map(os.fsencode, names), offset + 1):
            entry = _DIRENT.pack(number, number, len(name), 0) + name
            entry += bytes(-len(entry) % 8)
            if len(found) + len(entry) > size:
                break
            found += entry
        return found

    def _nothing(self, _: int, __: bytes) -> bytes:
        return b''


def _attributes(descriptor: int) -> bytes:
    one = os.fstat(descriptor)
    times = one.st_atime_ns, one.st_mtime_ns, one.st_ctime_ns
    return _ATTR.pack(
        one.st_ino, one.st_size, one.st_blocks,
        *(time // 10**9 for time in times), *(time % 10**9 for time in times),
        one.st_mode, one.st_nlink, one.st_uid, one.st_gid, 0, 4096, 0)


def _checked(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _mount(directory: str) -> _Server:
    """Mount it in a namespace of this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    _checked(libc.unshare(_CLONE_NEWNS))
    under = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    node = f'{directory}.fuse'
    os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(10, 229))
    device = os.open(node, os.O_RDWR | os.O_CLOEXEC)
    os.unlink(node)
    # MS_REC | MS_PRIVATE
    _checked(libc.mount(b'none', b'/', None, 0x4000 | 0x40000, None))
    _checked(libc.mount(
        b'mirror', os.fsencode(directory), b'fuse.mirror', 0,
        f'fd={device},rootmode=40000,user_id=0,group_id=0,allow_other'
        .encode()))
    return _Server(device, under)


def main() -> None:
    directory, pid_file, *command = sys.argv[1:]
    server = _mount(directory)
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        Path(pid_file).write_text(str(os.getpid()))
        server.serve()
        os._exit(0)
    until(lambda: os.listdir(directory) is not None, 'a file system')
    os.execvp(command[0], command)   # noqa: S606


if __name__ == '__main__':
    main()
