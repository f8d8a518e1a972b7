# SPDX-License-Identifier: Apache-2.0
"""The health watch as nova-compute runs it."""

from collections.abc import Callable
from typing import Any

from virtlogd_driver.compute.nova_edge import outside_eventlet
from virtlogd_driver.compute.options import Options
from virtlogd_driver.node import watch
from virtlogd_driver.virtlogd import periodic


def start(options: Options,
          connection: Callable[[], Any]) -> periodic.HealthTask | None:
    """Begin to watch this host's logs.

    :param connection: gives the libvirt connection; HostError where there is
        none
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
        run=outside_eventlet)
    task.start()
    return task
