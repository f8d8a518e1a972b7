# SPDX-License-Identifier: Apache-2.0
"""Reading what this process may not: a daemon with one capability.

virtlogd's files are 0600 and root's. The functions here run in an
oslo.privsep daemon that keeps CAP_DAC_READ_SEARCH alone: it reads any file
and writes, owns, kills nothing. As it is the edge of another process it takes
nobody's word: it checks each path itself, against its own configuration, and
gives nothing but logs.

Only the types of msgpack go over the edge, so the answers are tuples; our
errors do go over it, as each of them takes one string. Large data is posted to
a mailbox of the caller's.
"""

import functools
import importlib.util
import os
import sys
from collections.abc import Collection

from oslo_config import cfg
from oslo_privsep import capabilities

from virtlogd_driver import conf, exception, helper
from virtlogd_driver.console_log import log, mailbox
from virtlogd_driver.console_log.directory import Directory, open_below
from virtlogd_driver.console_log.generation import parse

context = helper.Context(
    'virtlogd_driver',
    cfg_section='virtlogd_privileged',
    pypath=f'{__name__}.context',
    capabilities=[capabilities.CAP_DAC_READ_SEARCH])

#: Most bytes of one answer: privsep's messages end at 100 MiB.
MAX_BYTES = 64 * 1024 * 1024

_SPECIAL = frozenset(('', '.', '..'))

#: The data first; None: it is in the mailbox.
Tail = tuple[bytes | None, tuple[int, ...] | None, bool, int]
Since = tuple[bytes | None, tuple[int, ...] | None, int | None, int]


@context.entrypoint
def read_tail(path: str, limit: int, max_backups: int | None,
              box: mailbox.Address | None = None) -> Tail:
    """:func:`log.read_tail` of a log below a root; a position is a tuple."""
    directory, name = _open(path)
    with directory:
        read = log.read_tail(
            directory, name, min(limit, MAX_BYTES), max_backups=max_backups)
        return (None if mailbox.post(box, read.data) else read.data,
                pack(read.position), read.exact, read.older)


@context.entrypoint
def read_from(
        path: str, position: tuple[int, ...] | None, limit: int,
        max_backups: int | None,
        box: mailbox.Address | None = None,
        passed: Collection[log.Passed] | None = None) -> Since:
    """:func:`log.read_from` of a log below a root; likewise."""
    directory, name = _open(path)
    with directory:
        since = log.read_from(
            directory, name, unpack(position), min(limit, MAX_BYTES),
            max_backups=max_backups,
            passed=None if passed is None else {
                (device, inode, size, mtime_ns)
                for device, inode, size, mtime_ns in passed})
        return (None if mailbox.post(box, since.data) else since.data,
                pack(since.position), since.missed, since.behind)


def pack(position: log.Position | None) -> tuple[int, ...] | None:
    """A position as msgpack can carry it."""
    if position is None:
        return None
    return (
        position.device, position.inode, position.offset, position.mark)


def unpack(values: tuple[int, ...] | None) -> log.Position | None:
    return None if values is None else log.Position(*values)


def _open(path: str) -> tuple[Directory, str]:
    """Open the directory of a log.

    :raises LogRefused: the path is not one of a log below a root
    """
    parts = path.split('/')[1:]
    if not path.startswith('/') or '\0' in path or _SPECIAL & set(parts):
        raise exception.LogRefused(
            f'{path!r} is not an absolute path without "." and "..". Correct '
            f'the <log> of the domain.')
    *above, name = parts
    instances, *others = roots()
    below = _below(instances, above)
    # There are disks as well.
    if below is not None and parse(name) is not None:
        return open_below(instances, below), name
    for root in others:
        below = _below(root, above)
        if below is not None:
            return open_below(root, below), name
    raise exception.LogRefused(
        f'{path} is neither a console.log below instances_path ({instances}) '
        f'nor a file below [virtlogd] log_directories '
        f'({", ".join(others) or "none"}). Add its directory there, and '
        f'start the service anew.')


def _below(root: str, parts: list[str]) -> list[str] | None:
    """The names that lead from a root to a directory, if it is below it."""
    start = _names(root)
    if not start or parts[:len(start)] != start:
        return None
    return parts[len(start):]


@functools.lru_cache
def _names(root: str) -> list[str]:
    return [name for name in os.path.normpath(root).split('/') if name]


def roots() -> tuple[str, ...]:
    """The instances path, then the log directories.

    In nova's own process (its tests, a context that was forked) nova's
    configuration has both; the daemon that privsep-helper starts has only been
    given the same files.
    """
    if 'nova.conf' in sys.modules:
        return (cfg.CONF.instances_path, *cfg.CONF.virtlogd.log_directories)
    return _roots_of_files()


def _given(option: str) -> list[str]:
    try:
        return list(cfg.CONF[option] or ())
    except cfg.NoSuchOptError:
        return []


@functools.cache
def _roots_of_files() -> tuple[str, ...]:
    nova = importlib.util.find_spec('nova')
    own = cfg.ConfigOpts()
    # The options as nova has them; it is not imported for their sake.
    own.register_opts([
        cfg.StrOpt('pybasedir', default=(
            '/var/lib/nova' if nova is None or nova.origin is None
            else os.path.dirname(os.path.dirname(nova.origin)))),
        cfg.StrOpt('state_path', default='$pybasedir'),
        cfg.StrOpt('instances_path', default='$state_path/instances'),
    ])
    conf.register_opts(own)
    own([], project='nova', default_config_files=_given('config_file'),
        default_config_dirs=_given('config_dir'))
    return (own.instances_path, *own.virtlogd.log_directories)
