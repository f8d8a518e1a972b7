# SPDX-License-Identifier: Apache-2.0
"""A daemon with one capability opens what this process may not.

virtlogd's files are 0600 and root's. The functions here run in an
oslo.privsep daemon that keeps CAP_DAC_READ_SEARCH alone: it opens any file for
reading and writes, owns, kills nothing. As it is the edge of another process
it takes nobody's word: it checks each path itself, against its own
configuration, and gives nothing but logs: regular files with one name, of
root, of the caller or of QEMU, that no link leads to. What it gives are open
files (handover.py), to its caller and to nobody else.

Only the types of msgpack go over the edge, so the answers are tuples; our
errors do go over it, as each of them takes one string.
"""

import contextlib
import functools
import os
import pwd
import sys
import time
from collections.abc import Collection, Iterator

from oslo_config import cfg
from oslo_privsep import capabilities

from virtlogd_driver import conf, exception, helper, privileged_process
from virtlogd_driver.console_log import handover, log, opened
from virtlogd_driver.console_log.directory import Directory, open_below
from virtlogd_driver.console_log.generation import parse

context = helper.Context(
    'virtlogd_driver',
    cfg_section='virtlogd_privileged',
    pypath=f'{__name__}.context',
    capabilities=[capabilities.CAP_DAC_READ_SEARCH])

#: Most bytes of one answer: privsep's messages end at 100 MiB.
MAX_BYTES = 64 * 1024 * 1024

#: Seconds that a call may take until others of the same directory are refused:
#: the file system hangs, and each would take one more of the helper's threads.
HANGS = 5.0

#: Users that QEMU runs as; where it writes a log itself (stdio_handler "file")
#: libvirt gives it the file.
_QEMU = ('qemu', 'libvirt-qemu')

Position = tuple[int, ...] | None
Tail = tuple[bytes, Position, bool, str | None]
Since = tuple[bytes, Position, int | None, int, tuple[log.Part, ...]]


@context.entrypoint
def open_log(
        path: str, wanted: opened.Packed,
        held: tuple[tuple[int, int], ...],
        address: handover.Address) -> opened.Packed | None:
    """Open the files of a log below a root; they are sent to the caller.

    :param wanted: a packed log.Wanted
    :param held: device and inode of files that the caller has open, which are
        not sent
    :param address: of the caller's handover.Receiver
    :returns: what :func:`opened.unpack` takes, with the files that were sent;
        None: they could not be sent
    """
    with (_opened(path) as (directory, name), contextlib.closing(log.take(
            directory, name, opened.unpack_wanted(wanted))) as taken):
        answer, descriptors = opened.pack(taken, frozenset(held))
        if descriptors and not _sender().send(address, descriptors):
            return None
        return answer


@context.entrypoint
def read_tail(path: str, limit: int, max_backups: int | None) -> Tail:
    """Do :func:`log.read_tail`, where no open file can be passed."""
    with _opened(path) as (directory, name):
        read = log.read_tail(
            directory, name, min(limit, MAX_BYTES), max_backups=max_backups)
        return (read.data, opened.pack_position(read.position), read.exact,
                read.failure)


@context.entrypoint
def read_from(path: str, position: Position, limit: int,
              max_backups: int | None,
              passed: Collection[log.Passed] | None = None) -> Since:
    """Do :func:`log.read_from`, likewise."""
    with _opened(path) as (directory, name):
        since = log.read_from(
            directory, name, opened.unpack_position(position),
            min(limit, MAX_BYTES), max_backups=max_backups,
            passed=None if passed is None else {
                (device, inode, size, mtime_ns)
                for device, inode, size, mtime_ns in passed})
        return (since.data, opened.pack_position(since.position),
                since.missed, since.behind, since.parts)


@context.entrypoint
def open_nothing(address: handover.Address) -> bool:
    """Send an open /dev/null: whether open files can be passed at all."""
    descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _sender().send(address, [descriptor])
    finally:
        os.close(descriptor)


#: Calls that have not ended: of which directory, and when they began.
_calls: dict[object, tuple[str, float]] = {}


class _Guarded(Directory):
    """A directory gives out nothing but logs."""

    __slots__ = ()

    def check(self, status: os.stat_result, name: str) -> None:
        super().check(status, name)
        path = f'{self.path}/{name}'
        if status.st_nlink > 1:
            raise exception.LogNotRegular(
                f'{path} has {status.st_nlink} names (hard links), so it may '
                f'be a file of somebody else. A console log has one: remove '
                f'the other (find -inum {status.st_ino}), or this one.')
        if status.st_uid not in _owners():
            raise exception.LogNotRegular(
                f'{path} belongs to user {status.st_uid}, not to root, '
                f'nova-compute or QEMU, so it is not given out. Correct its '
                f'owner, or remove it.')


@contextlib.contextmanager
def _opened(path: str) -> Iterator[tuple[Directory, str]]:
    """Open the directory of a log, for a call.

    :raises LogError: another call hangs there
    """
    where, now = os.path.dirname(path), time.monotonic()
    if any(begun == where and now - since >= HANGS
           for begun, since in list(_calls.values())):
        raise exception.LogError(
            f'{path} does not answer: what was read there before has not '
            f'come yet. See to the file system that it is on.')
    call = object()
    _calls[call] = where, now
    try:
        directory, name = _open(path)
        with directory:
            yield directory, name
    finally:
        del _calls[call]


def _open(path: str) -> tuple[Directory, str]:
    """Open the directory of a log.

    :raises LogRefused: the path is not one of a log below a root
    """
    *above, name = path.split('/')
    if (not path.startswith('/') or '\0' in path
            or name in ('', os.curdir, os.pardir)):
        raise exception.LogRefused(
            f'{path!r} is not the absolute path of a file. Correct the <log> '
            f'of the domain.')
    parts = _names('/'.join(above))
    instances, *others = roots()
    below = _below(instances, parts)
    # There are disks as well.
    if below is not None and parse(name) is not None:
        return open_below(instances, below, _Guarded), name
    for root in others:
        below = _below(root, parts)
        if below is not None:
            return open_below(root, below, _Guarded), name
    raise exception.LogRefused(
        f'{path} is neither a console.log below instances_path ({instances}) '
        f'nor a file below [virtlogd] log_directories '
        f'({", ".join(others) or "none"}). Add its directory there, and '
        f'start the service anew.')


def _below(root: str, parts: list[str]) -> list[str] | None:
    """Give the names that lead from a root to a directory below it."""
    start = _names(root)
    if not start or parts[:len(start)] != start:
        return None
    return parts[len(start):]


def _names(path: str) -> list[str]:
    """Give the names in a path; what "//", "/./" and "/x/.." say is left out.

    A root and a path are taken apart alike, as nova puts the one before the
    other as it is configured. Links in a root are the administrator's; below
    it none is followed, so that ".." means what it says.
    """
    return [name for name in os.path.normpath(path).split('/') if name]


def roots() -> tuple[str, ...]:
    """Give the instances path, then the log directories.

    In nova's own process (its tests, a context that was forked) nova's
    configuration has both; the daemon that privsep-helper starts has only been
    given the same files.
    """
    if 'nova.conf' in sys.modules:
        return (cfg.CONF.instances_path, *cfg.CONF.virtlogd.log_directories)
    return _roots_of_files()


@functools.cache
def _roots_of_files() -> tuple[str, ...]:
    own = cfg.ConfigOpts()
    own.register_opts(conf.nova_paths())
    conf.register_opts(own)
    given = privileged_process.option
    own([], project='nova', default_config_files=given('config_file') or [],
        default_config_dirs=given('config_dir') or [])
    return (own.instances_path, *own.virtlogd.log_directories)


@functools.cache
def _sender() -> handover.Sender:
    # Where nobody is known nothing is sent.
    return handover.Sender(privileged_process.caller()[0])


@functools.cache
def _owners() -> frozenset[int]:
    """Give users whose files are given out."""
    owners = {0, privileged_process.caller()[1]}
    for name in _QEMU:
        with contextlib.suppress(KeyError):
            owners.add(pwd.getpwnam(name).pw_uid)
    return frozenset(owners)
