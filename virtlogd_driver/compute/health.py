# SPDX-License-Identifier: Apache-2.0
"""nova-compute runs the health watch."""

import functools
import time
from collections.abc import Callable
from typing import Any

from virtlogd_driver.compute.deletions import (
    Deletions,
    clean,
    keeping_of,
    say,
)
from virtlogd_driver.compute.nova_edge import outside_eventlet
from virtlogd_driver.compute.options import Options
from virtlogd_driver.history import deleted
from virtlogd_driver.node import watch
from virtlogd_driver.node.metrics import Kept
from virtlogd_driver.virtlogd import periodic
from virtlogd_driver.virtlogd.disk import Disks


def start(options: Options, connection: Callable[[], Any],
          deletions: Deletions) -> periodic.HealthTask | None:
    """Begin to watch this host's logs.

    :param connection: gives the libvirt connection; HostError where there is
        none
    :param deletions: what is kept of deleted guests, and what was not
    :returns: what to stop; None: the operator has turned it off
    """
    ours = options.virtlogd
    if not ours.health_interval:
        return None
    task = watch.health_task(
        connection, periodic.Settings(
            socket_path=ours.virtlogd_socket, interval=ours.health_interval,
            timeout=ours.health_timeout, viewer_timeout=ours.viewer_timeout),
        heal=ours.reattach, metrics_file=ours.metrics_file,
        run=outside_eventlet, relay=options.relay,
        clean=functools.partial(_clean, options),
        kept=functools.partial(_kept, options, deletions))
    task.start()
    return task


def _clean(options: Options, disks: Disks) -> None:
    """Remove the logs of deleted guests whose time is over.

    :raises OSError, DiskStalled: some stay
    """
    keeping = keeping_of(options)
    say(keeping, disks.ask(keeping.directory, clean, keeping))


def _kept(options: Options, deletions: Deletions,
          disks: Disks) -> Kept | None:
    """Tell what is kept of deleted guests, for metrics.

    :returns: None: nothing is, nor is to be
    :raises DiskStalled: that is not known
    """
    keeping = keeping_of(options)
    stock = disks.ask(keeping.directory, deleted.stock, keeping, time.time())
    if not keeping.seconds and not stock.count:
        return None
    return Kept(stock.count, stock.size, stock.oldest, not stock.fault,
                deletions.failed)
