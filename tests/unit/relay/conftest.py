# SPDX-License-Identifier: Apache-2.0
"""The relay is tested on hosts that may be busy."""

import pytest

from virtlogd_driver.relay import console


@pytest.fixture(autouse=True)
def _has_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the log has is found, though this process did not run for long."""
    monkeypatch.setattr(console, '_SEAM', 60)
