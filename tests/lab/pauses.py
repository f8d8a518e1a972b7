# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin pauses threads at random, so that races show themselves::

    tools/functional.sh -p tests.lab.pauses
    PAUSES=test tools/functional.sh -p tests.lab.pauses

All threads but the test's own pause where nova and the driver log something,
change a file or save an instance; with ``PAUSES=test`` the test's own does,
where it looks at a file or a guest and where it sleeps. So a host is slow
without being busy. A test that fails then has looked between two steps of
somebody else, unless it says how long something takes.
"""

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any

#: Seconds of a pause, at most.
LONGEST = 0.5

_IN_TEST = os.environ.get('PAUSES') == 'test'
_sleep = time.sleep


def pytest_collection_finish() -> None:
    # Now nova is loaded, which its own fixtures want to do themselves.
    import libvirt
    from nova.objects.instance import Instance
    from nova.virt.libvirt.guest import Guest
    if _IN_TEST:
        places: list[tuple[Any, str, float]] = [
            *((os, name, 0.02) for name in ('stat', 'open', 'listdir')),
            *((libvirt.virConnect, name, 0.2)
              for name in ('lookupByName', 'lookupByUUIDString')),
            (time, 'sleep', 0.08)]
    else:
        places = [
            *((os, name, 0.15) for name in (
                'rename', 'replace', 'unlink', 'rmdir', 'mkdir', 'fsync')),
            *((Guest, name, 0.5) for name in (
                'launch', 'poweroff', 'delete_configuration', 'migrate')),
            (Instance, 'save', 0.2), (logging.Logger, 'handle', 0.05)]
    for owner, name, often in places:
        setattr(owner, name, _with_pauses(getattr(owner, name), often))


def _with_pauses(call: Callable[..., Any], often: float) -> Callable[..., Any]:
    """
    :param often: the probability of a pause before, and of one after
    """
    def pause() -> None:
        current = threading.current_thread()
        if ((current is threading.main_thread()) == _IN_TEST
                and random.random() < often):  # noqa: S311
            _sleep(random.random() * LONGEST)  # noqa: S311

    def paused(*args: Any, **kwargs: Any) -> Any:
        pause()
        result = call(*args, **kwargs)
        pause()
        return result
    return paused
