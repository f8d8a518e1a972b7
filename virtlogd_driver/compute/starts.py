# SPDX-License-Identifier: Apache-2.0
"""A guest's start is checked before, and noted as a boot afterwards.

Before: is virtlogd ready? libvirt starts no guest without it, and hangs with
one that hangs. And where do the guest's logs end? After: that is noted beside
the log as the beginning of a boot.
"""

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nova import exception as nova_exception
from nova.virt import event as virtevent
from nova.virt.libvirt.utils import get_instance_path
from oslo_log import log as logging

from virtlogd_driver import exception
from virtlogd_driver.compute.consoles import Consoles
from virtlogd_driver.compute.nova_edge import DISKS, nova_errors, tell_user
from virtlogd_driver.compute.options import Options
from virtlogd_driver.console_log import generation
from virtlogd_driver.history import boot, history
from virtlogd_driver.node import hypervisor
from virtlogd_driver.virtlogd import health

LOG = logging.getLogger(__name__)

#: Starts that wait to be noted. A disk that stalls holds up no more than
#: these; each is a few hundred bytes.
MOST_WAITING = 1000


@dataclass(frozen=True, slots=True)
class _Start:
    """libvirt says that it has started a guest."""

    uuid: str
    #: Seconds since the epoch.
    time: float
    #: Where its logs ended just before; None: it was not nova who started it.
    ends: history.LogEnds | None


class Starts:
    """Starts of guests on this host are checked and noted."""

    def __init__(self, options: Options, consoles: Consoles,
                 connection: Callable[[], Any],
                 carrier: Callable[[], history.History]) -> None:
        """
        :param connection: gives the libvirt connection; HostError where there
            is none
        :param carrier: gives what carries histories, with today's options
        """
        self._options = options
        self._consoles = consoles
        self._connection = connection
        self._carrier = carrier
        # Where the logs of guests that are being started end, by UUID.
        self._ends: dict[str, history.LogEnds] = {}
        self._started: queue.Queue[_Start | None] = queue.Queue(MOST_WAITING)
        self._noting: threading.Thread | None = None
        self._lock = threading.Lock()

    def check(self, instance: Any) -> exception.LogDiskFull | None:
        """Say what is wrong with a guest's log before anything is done.

        :returns: that the disk is full, if it is: the guest starts all the
            same, without a log
        :raises NovaException: virtlogd is down or hangs, and what to do
        """
        return self._check(instance, get_instance_path(instance))

    def check_new(self, instance: Any) -> None:
        """Say what is wrong before a new guest is made, which can go to
        another host then.

        :raises NovaException: virtlogd is down or hangs, or the disk is full,
            and what to do
        """
        # Its own directory is not there yet.
        full = self._check(instance, self._options.instances_path)
        if full:
            raise nova_exception.InternalError(str(full)) from full

    def _check(self, instance: Any,
               directory: str) -> exception.LogDiskFull | None:
        if self._options.virt_type not in ('kvm', 'qemu'):
            return None
        with nova_errors(instance):
            try:
                if self._consoles.capability().capable:
                    # Which log it is does not matter, and to look may hang.
                    health.check_ready(
                        self._options.virtlogd.virtlogd_socket,
                        [os.path.join(directory, generation.live_name(0, 0))],
                        self._options.virtlogd.health_timeout, disks=DISKS)
            except exception.LogDiskFull as e:
                return e
        return None

    def starting(self, context: Any, instance: Any, domain_xml: str) -> None:
        """Just before a guest is started: what is wrong is said, and where
        its logs end is noted, as long as the guest writes nothing.

        :raises NovaException: virtlogd is down or hangs, and what to do
        """
        full = self.check(instance)
        if full:
            LOG.warning('%s', full, instance=instance)
            tell_user(context, instance, full)
        self.note_ends(instance, domain_xml)

    def note_ends(self, instance: Any, domain_xml: str) -> None:
        """Note where the logs of a guest end that is about to be started."""
        with history.errors_logged(
                instance, 'The start of the guest is not noted, so that '
                '"virtlogd-console show --since-boot" does not know it'):
            logs = history.guest_logs(domain_xml)
            self._carrier().wait_until_closed(list(logs.values()))
            self._ends[instance.uuid] = history.ends(logs)

    def forget(self, uuid: str) -> None:
        """A start of a guest has failed, or the guest is gone."""
        self._ends.pop(uuid, None)

    def event(self, event: Any) -> None:
        """A guest has started, whoever started it.

        It is noted beside its log by a thread of its own: this is called
        where all of libvirt's events come, which must not wait for a disk.

        :param event: nova's LifecycleEvent
        """
        if event.transition != virtevent.EVENT_LIFECYCLE_STARTED:
            return
        start = _Start(event.uuid, time.time(),
                       self._ends.pop(event.uuid, None))
        with history.errors_logged(
                history.guest(event.uuid), 'The start of the guest is not '
                'noted before another guest starts, so that "virtlogd-console '
                'show --since-boot" does not know it'), self._lock:
            if self._noting is None:
                noting = threading.Thread(
                    target=self._note_all, name='virtlogd-boots', daemon=True)
                noting.start()
                self._noting = noting
        try:
            self._started.put_nowait(start)
        except queue.Full:
            LOG.warning('The start of guest %s is not noted, so that '
                        '"virtlogd-console show --since-boot" does not know '
                        'it: %d starts before it still wait for the disk of '
                        '%s. See to that file system', event.uuid,
                        MOST_WAITING, self._options.instances_path)

    def wait_until_noted(self) -> None:
        """Return when each start until now is noted."""
        self._started.join()

    def _note_all(self) -> None:
        while True:
            start = self._started.get()
            try:
                if start is None:
                    return
                with history.errors_logged(
                        None, f'The start of guest {start.uuid} is not noted, '
                        f'so that "virtlogd-console show --since-boot" does '
                        f'not know it'):
                    self._note(start)
            finally:
                self._started.task_done()

    def _note(self, start: _Start) -> None:
        xml = hypervisor.booted_xml(self._connection(), start.uuid)
        logs = {} if xml is None else history.guest_logs(xml)
        if logs:
            # Not by nova: what it wrote until now is taken for older.
            ends = history.ends(logs) if start.ends is None else start.ends
            boot.add(os.path.dirname(next(iter(logs.values()))),
                     boot.Boot(start.time, ends))

    def stop(self) -> None:
        """nova-compute ends: no further start is noted."""
        with contextlib.suppress(queue.Full):
            self._started.put_nowait(None)
