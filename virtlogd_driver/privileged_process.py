# SPDX-License-Identifier: Apache-2.0
"""A process that privsep-helper has made checks itself, and gives up rights.

privsep-helper reads its configuration and sets up its log before it imports a
context: a file of somebody else's has had its effect by then, as
log_config_append runs code. What keeps such a file away is the rootwrap
filter, or sudoers; here is seen that they did, before anything is connected.

privsep leaves a context the capabilities that it names. What else there is to
come by goes here: what an executed file could give (the bounding set,
set-user-ID and file capabilities, ambient ones), and what another process of
the same user could take out of this one (ptrace, core dumps). See
capabilities(7), prctl(2).
"""

import contextlib
import ctypes
import functools
import glob
import itertools
import os
import socket
import sys
from collections.abc import Iterator
from typing import Any

from oslo_config import cfg

from virtlogd_driver import peer, safe_path

#: Calls that a helper works on at a time, where nova.conf does not say: one
#: that waits for a disk holds up none for another.
THREADS = 16

# linux/prctl.h
_PR_SET_DUMPABLE = 4
_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4

_libc = ctypes.CDLL(None, use_errno=True)


def is_for(context: str) -> bool:
    """Tell whether privsep-helper has made this process for a context.

    :param context: its Python path
    """
    return bool(option('privsep_context') == context)


def begin(section: str) -> None:
    """Check the configuration and give up what is not needed, as root.

    What cannot be given up is said on standard error, and the helper works all
    the same.

    :param section: the context's group in nova.conf, for messages
    :raises SystemExit: the configuration is not root's; privsep-helper ends,
        and its caller is told why
    """
    # One that is not root has nothing that its user has not.
    if os.geteuid() == 0:
        error = check_configuration(section)
        if error is not None:
            sys.exit(error)
    cfg.CONF.set_default('thread_pool_size', THREADS, group=section)
    for what in confine():
        print(f'privsep-helper of [{section}] keeps {what}', file=sys.stderr)


def check_configuration(section: str) -> str | None:
    """Tell what is wrong with the files that this process was given.

    :param section: as begin
    """
    variables = [name for name in os.environ
                 if name.startswith('OS_') and '__' in name]
    if variables:
        # oslo_config.sources._environment
        return (f'{variables[0]} in the environment would set an option of '
                'the privileged helper: let sudo reset the environment '
                '(env_reset, no SETENV)')
    for path in _files():
        try:
            safe_path.check_of_root(path)
        except (safe_path.Untrusted, OSError) as e:
            return (
                f'the privileged helper does not go by {path}: {e}. Make it '
                'root\'s with all above it (chown root:nova, chmod g-w,o-w), '
                'or give the helper a file of root\'s: '
                f'[{section}] helper_command = ... --config-file FILE')
    return None


def _files() -> Iterator[str]:
    """Tell what oslo.config has read, or looked for."""
    yield from option('config_file') or ()
    for directory in option('config_dir') or ():
        yield directory
        yield from sorted(glob.glob(os.path.join(
            glob.escape(directory), '*.conf')))


def option(name: str) -> Any:
    """Give an option that privsep-helper has; None in another process."""
    try:
        return cfg.CONF[name]
    except cfg.NoSuchOptError:
        return None


@functools.cache
def caller() -> tuple[int, int]:
    """Give process and user at the other end of privsep's own socket.

    This process itself where it is not privsep-helper's; 0 and 0 where they
    are not known.
    """
    path = option('privsep_sock_path')
    if path is None:
        return os.getpid(), os.getuid()
    for name in os.listdir('/proc/self/fd'):
        with (contextlib.suppress(OSError),
              socket.socket(fileno=os.dup(int(name))) as channel):
            if (channel.family == socket.AF_UNIX
                    and channel.getpeername() == path):
                return peer.credentials(channel)
    return 0, 0


def confine() -> list[str]:
    """Give it up, for this thread and all that it starts or forks.

    To be called while the process is still root: the bounding set needs
    CAP_SETPCAP.

    :returns: what could not be given up
    """
    failed = []
    for capability in itertools.count():
        held = _prctl(_PR_CAPBSET_READ, capability)
        if held < 0:   # there are no more
            break
        if held and _prctl(_PR_CAPBSET_DROP, capability) < 0:
            failed.append(
                f'the bounding set ({os.strerror(ctypes.get_errno())})')
            break
    for what, *arguments in (
            ('ambient capabilities', _PR_CAP_AMBIENT,
             _PR_CAP_AMBIENT_CLEAR_ALL),
            ('no_new_privs', _PR_SET_NO_NEW_PRIVS, 1),
            ('dumpable', _PR_SET_DUMPABLE, 0)):
        if _prctl(*arguments) < 0:
            failed.append(f'{what} ({os.strerror(ctypes.get_errno())})')
    return failed


def _prctl(option: int, argument: int) -> int:
    unused = ctypes.c_ulong(0)
    answer: int = _libc.prctl(
        option, ctypes.c_ulong(argument), unused, unused, unused)
    return answer
