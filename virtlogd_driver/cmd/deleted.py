# SPDX-License-Identifier: Apache-2.0
"""Kept logs of deleted guests, for the commands that show them.

libvirt is not asked for them.
"""

import datetime
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from oslo_config import cfg

from virtlogd_driver import exception
from virtlogd_driver.cmd import control_sequences, guest_name, table
from virtlogd_driver.cmd.host import Host
from virtlogd_driver.console_log import generation
from virtlogd_driver.history import deleted
from virtlogd_driver.history import logs as history_logs
from virtlogd_driver.history.deleted import Kept
from virtlogd_driver.node.hypervisor import Guest

__all__ = ['Kept', 'about', 'guest_or_kept', 'log', 'logs', 'show_list']

_HEAD = ('NAME', 'SERVER', 'DELETED', 'SIZE', 'UUID', 'PROJECT', 'WHY')
#: Where several hosts share the instances path; before WHY.
_HOST = 'HOST'
_RIGHT = frozenset({'DELETED', 'SIZE'})
#: A name that no shell takes for anything else.
_PLAIN = re.compile(r'[A-Za-z0-9_][A-Za-z0-9_.:@-]*')
#: Characters of a reason in the table.
_LONGEST = 60


def guest_or_kept(host: Host, arguments: Any) -> Guest | Kept:
    """Find a guest, or the kept log of one that is not here any more.

    :raises GuestNotFound: there is neither
    :raises LogRefused: kept logs were asked for, and may not be looked at
    """
    if arguments.deleted:
        return find(_kept(), arguments.guest)
    try:
        return host.guest(arguments.guest)
    except exception.AmbiguousGuest:
        raise
    except exception.GuestNotFound as missing:
        try:
            found = find(_kept(), arguments.guest)
        except exception.AmbiguousGuest:
            raise
        except (exception.GuestNotFound, exception.LogRefused):
            raise missing from None
    print(control_sequences.visible(
        f'Guest {found.name} is not here any more. Its log was kept '
        f'{table.age(time.time() - found.entry.when / 1000)} ago: '
        f'{found.about.why or "it is not known why"}.'), file=sys.stderr)
    return found


def _kept() -> list[Kept]:
    """Give what is kept, the oldest first.

    :raises LogRefused: it may not be looked at
    """
    path = os.path.join(cfg.CONF.instances_path, deleted.DIRECTORY)
    try:
        return deleted.kept(cfg.CONF.instances_path)
    except OSError as error:
        raise exception.LogRefused(
            f'{path} cannot be looked at ({error.strerror}): run as root, or '
            f'as the user of nova-compute.') from error


def find(found: Sequence[Kept], word: str) -> Kept:
    """Give the kept log that a word names: the newest of its guest.

    Its ID comes first, then what names a guest, then a server's own name.

    :param found: the oldest first
    :raises AmbiguousGuest: several; the message names some
    :raises GuestNotFound: there is none
    """
    for one in found:
        if one.entry.id == word:
            return one
    newest = {one.uuid: one for one in found}.values()
    named = [one for one in newest if one.about.display_name == word]
    exact = [one for one in newest if word in (one.name, one.uuid)]
    if named and not exact:
        if len(named) > 1:
            raise exception.AmbiguousGuest(
                f'{len(named)} deleted servers were called {word!r}. Give '
                f'the UUID of one: '
                f'{", ".join(one.uuid for one in named[-5:])}.')
        return named[0]
    try:
        return guest_name.find(newest, word)
    except exception.AmbiguousGuest:
        raise
    except exception.GuestNotFound:
        raise exception.GuestNotFound(
            f'There is no kept log of a guest {word!r}. "virtlogd-console '
            f'list --deleted" shows what there is; see [virtlogd] '
            f'keep_deleted.') from None


def logs(one: Kept) -> list[tuple[int, str]]:
    """Give serial ports, each with the path of the newest file of its log."""
    found = []
    for name in history_logs.newest(one.entry.path):
        file = generation.parse(name)
        assert file is not None
        found.append((file.port, os.path.join(one.entry.path, name)))
    return found


def log(one: Kept, port: int) -> str:
    """Give path of the log of a serial port.

    :raises LogNotFound: there is none
    """
    found = dict(logs(one))
    if port not in found:
        raise exception.LogNotFound(
            f'Of serial port {port} of deleted guest {one.name} no log was '
            f'kept: there are those of {", ".join(map(str, found)) or "none"}'
            f'.')
    return found[port]


def about(one: Kept) -> dict[str, str]:
    """Tell what a manifest says of a guest."""
    return {'guest': one.name, 'uuid': one.uuid, 'state': 'deleted',
            'host': one.host, 'server': one.about.display_name,
            'project': one.about.project, 'deleted': _when(one),
            'why': one.about.why}


def _when(one: Kept) -> str:
    return datetime.datetime.fromtimestamp(
        one.entry.when / 1000, datetime.UTC).isoformat(timespec='seconds')


def show_list(arguments: Any) -> int:
    """Print what is kept: ``virtlogd-console list --deleted``."""
    found = _kept()
    if arguments.names:
        # For a shell, which must not take what others have written for more.
        for name in {name: None for one in found for name in (
                one.name, one.uuid) if _PLAIN.fullmatch(name)}:
            print(name)
    elif arguments.json:
        json.dump([_json(one) for one in found], sys.stdout, indent=2)
        print()
    elif found:
        for line in _lines(found):
            print(line)
    return 0


def _json(one: Kept) -> dict[str, Any]:
    return {
        'id': one.entry.id, 'name': one.about.name or None, 'uuid': one.uuid,
        'server': one.about.display_name or None,
        'project': one.about.project or None, 'host': one.host,
        'deleted': _when(one), 'why': one.about.why or None,
        'size': one.entry.size, 'path': one.entry.path,
        'ports': [port for port, _ in logs(one)]}


def _lines(found: Sequence[Kept]) -> list[str]:
    now = time.time()
    times = Counter(one.uuid for one in found)
    several = len({one.host for one in found}) > 1
    head = [*_HEAD[:-1], *([_HOST] if several else []), _HEAD[-1]]
    return table.lines(head, [
        [control_sequences.visible(cell) or '-' for cell in (
            one.about.name, one.about.display_name,
            table.age(now - one.entry.when / 1000),
            table.size(one.entry.size),
            one.uuid if times[one.uuid] == 1 else one.entry.id,
            one.about.project, *([one.host] if several else []),
            _short(one.about.why))] for one in found], _RIGHT)


def _short(reason: str) -> str:
    return (reason if len(reason) <= _LONGEST
            else f'{reason[:_LONGEST - 3]}...')
