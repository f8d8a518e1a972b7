# SPDX-License-Identifier: Apache-2.0
"""Where guests' logs are, for as long as nothing happens to the guests.

To ask libvirt takes ten times as long as to read the log, and libvirt may not
answer just when the log is wanted.
"""

import threading
from collections.abc import Callable


class PathCache:
    """Paths of logs by the UUID of their guest; for many threads."""

    def __init__(self) -> None:
        self._paths: dict[str, str | None] = {}
        self._forgotten = 0
        self._lock = threading.Lock()

    def get(self, uuid: str, look: Callable[[], str | None]) -> str | None:
        """The path of a guest's log; None: it names none.

        :param look: looks it up; what it raises is raised
        """
        with self._lock:
            if uuid in self._paths:
                return self._paths[uuid]
            before = self._forgotten
        path = look()
        with self._lock:
            # What was looked up before a change may be what was before it.
            if before == self._forgotten:
                self._paths[uuid] = path
        return path

    def forget(self, uuid: str) -> None:
        """The guest has changed, or may change from now on."""
        with self._lock:
            self._forgotten += 1
            self._paths.pop(uuid, None)
