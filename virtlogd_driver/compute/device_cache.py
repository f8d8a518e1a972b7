# SPDX-License-Identifier: Apache-2.0
"""A cache keeps guests' serial devices until something happens to a guest.

To ask libvirt takes ten times as long as to read a log, and libvirt may not
answer just when a console is wanted.
"""

import threading
from collections.abc import Callable

from virtlogd_driver.guest.char_device import CharDevice

Devices = tuple[CharDevice, ...]


class DeviceCache:
    """A cache has devices by the UUID of their guest; for many threads."""

    def __init__(self) -> None:
        self._devices: dict[str, Devices] = {}
        self._forgotten = 0
        self._lock = threading.Lock()

    def get(self, uuid: str, look: Callable[[], Devices]) -> Devices:
        """The serial devices of a guest's domain, port 0 first.

        :param look: looks them up; what it raises is raised
        """
        with self._lock:
            if uuid in self._devices:
                return self._devices[uuid]
            before = self._forgotten
        devices = look()
        with self._lock:
            # What was looked up before a change may be what was before it.
            if before == self._forgotten:
                self._devices[uuid] = devices
        return devices

    def forget(self, uuid: str) -> Devices:
        """The guest has changed, or may change from now on.

        :returns: what was remembered; none where nothing was
        """
        with self._lock:
            self._forgotten += 1
            return self._devices.pop(uuid, ())
