# SPDX-License-Identifier: Apache-2.0
"""What a privileged process gives up for good, besides what privsep drops.

privsep leaves the effective and permitted capabilities that a context names.
This takes what else there is to come by: what an executed file could give
(the bounding set, set-user-ID and file capabilities, ambient ones), and what
another process of the same user could take out of this one (ptrace, core
dumps). See capabilities(7), prctl(2).
"""

import ctypes
import itertools
import os

# linux/prctl.h
_PR_SET_DUMPABLE = 4
_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4

_libc = ctypes.CDLL(None, use_errno=True)


def confine() -> list[str]:
    """Give it up, for this thread and those that it starts or forks.

    To be called while the process is still root: the bounding set needs
    CAP_SETPCAP.

    :returns: what could not be given up, for the operator
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
