# SPDX-License-Identifier: Apache-2.0
"""What is to hang is soon given up; all else has its time on a busy host."""

from collections.abc import Hashable
from typing import Any

from virtlogd_driver.virtlogd.bounded import Calls


def lengthen(calls: Calls, *but: Hashable) -> None:
    """Give each call a minute, but those with these keys, which hang."""
    call = calls.call

    def longer(key: Hashable, seconds: float, *rest: Any) -> Any:
        return call(key, seconds if key in but else 60, *rest)

    calls.call = longer  # type: ignore[method-assign]
