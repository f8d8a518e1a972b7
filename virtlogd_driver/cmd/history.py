# SPDX-License-Identifier: Apache-2.0
"""``virtlogd-console history`` shows output that waits for another host."""

import json
import os
import pwd
import sys
import time
from collections.abc import Callable
from typing import Any

from oslo_config import cfg

from virtlogd_driver import exception
from virtlogd_driver.cmd import control_sequences, table
from virtlogd_driver.cmd.host import Host
from virtlogd_driver.history import outbox
from virtlogd_driver.virtlogd import disk

_HEAD = ('GUEST', 'TO', 'SINCE', 'TRIES')

#: Seconds for which nothing is said of what is on its way.
_USUAL = 60.0


def late(instances_path: str,
         disks: disk.Disks = disk.DISKS) -> list[outbox.Waiting]:
    """Tell what has waited on this host for longer than usual.

    :param disks: asks file systems
    :returns: nothing where that may not be looked at, or its disk stalls
    """
    try:
        found = disks.ask(os.path.join(instances_path, ''),
                          outbox.waiting, instances_path)
    except (OSError, exception.DiskStalled):
        return []
    return [one for one in found if time.time() - one.since > _USUAL]


def said(instances_path: str,
         disks: disk.Disks = disk.DISKS) -> list[str]:
    """Give a line for each guest whose output waits longer than usual."""
    return [
        f'{one.guest}: what it wrote before it went to '
        f'{one.host or "another host"} waits in {one.path}: {one.reason}. It '
        f'is tried again by itself; "virtlogd-console history {one.guest} '
        f'--retry" does so now.' for one in late(instances_path, disks)]


def run(host: Host, arguments: Any) -> int:
    word = arguments.guest or ''
    found = [one for one in outbox.waiting(cfg.CONF.instances_path)
             if one.guest.startswith(word)]
    if word and not found:
        raise exception.GuestNotFound(
            f'Nothing of a guest {word} waits on this host. Name it by its '
            f'UUID, or the beginning of it: it is not here any more.')
    if arguments.retry:
        return max((_retry(host, one) for one in found), default=0)
    if arguments.json:
        json.dump([_json(one) for one in found], sys.stdout, indent=2)
        print()
    elif found:
        for line in table.lines(_HEAD, [
                (one.guest, one.host, table.since(one.since, time.time()),
                 str(one.attempts)) for one in found],
                frozenset({'SINCE', 'TRIES'})):
            print(line)
        for one in found:
            print(control_sequences.visible(
                f'{one.path}: {one.reason}'), file=sys.stderr)
    return 0


def _json(one: outbox.Waiting) -> dict[str, Any]:
    return {
        'uuid': one.guest, 'path': one.path, 'host': one.host or None,
        'since': table.date(one.since), 'tries': one.attempts,
        'reason': one.reason}


def _retry(host: Host, one: outbox.Waiting) -> int:
    """Try once, as who has put it there, and say what came of it."""
    _as_owner(one.path, lambda: _attempt(host, one.path))
    left = [other for other in outbox.waiting(cfg.CONF.instances_path)
            if other.path == one.path]
    for other in left:
        print(control_sequences.visible(f'{one.guest}: {other.reason}'),
              file=sys.stderr)
    if not left:
        print(f'{one.guest}: it has followed')
    return int(bool(left))


def _attempt(host: Host, path: str) -> None:
    host.init_helpers()
    # It takes a second, which no other command is to wait for.
    from virtlogd_driver.history import delivery
    own = cfg.CONF.virtlogd
    made = delivery.Delivery(
        _copy, own.max_history_bytes, own.history_timeout)
    for _ in range(5):
        # What nova-compute tries just now may have begun before it was mended.
        delay = made.attempt(path, lambda departure: delivery.Target(
            departure.address, departure.directory), own.history_timeout)
        state = outbox.load_state(path)
        if delay is None or not state.copied or state.final:
            return
        # It has come; until it is in its place.
        time.sleep(min(delay, 2.0))


def _as_owner(path: str, function: Callable[[], None]) -> None:
    """Call a function in a process of the user that a directory is of.

    nova-compute must read what is written there, and has the keys for ssh.
    """
    status = os.stat(path)
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        if os.geteuid() == 0 and status.st_uid:
            os.setgroups([])
            os.setgid(status.st_gid)
            os.setuid(status.st_uid)
            os.environ['HOME'] = pwd.getpwuid(status.st_uid).pw_dir
        function()
    except Exception as error:
        print(f'virtlogd-console: {error}', file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(0)


def _copy(source: str, destination: str, *, host: str, receive: bool,
          on_execute: Any, on_completion: Any, **_: Any) -> None:
    """Copy as nova does (nova/virt/libvirt/volume/remotefs.py)."""
    there = f'[{host}]' if ':' in host else host
    if receive:
        source = f'{there}:{source}'
    else:
        destination = f'{there}:{destination}'
    rsync = cfg.CONF.libvirt.remote_filesystem_transport == 'rsync'
    command = (['rsync', '--recursive', '--sparse'] if rsync
               else ['scp', '-r'])
    from oslo_concurrency import processutils
    processutils.execute(*command, source, destination,
                         on_execute=on_execute, on_completion=on_completion)
