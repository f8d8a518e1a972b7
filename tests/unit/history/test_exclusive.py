# SPDX-License-Identifier: Apache-2.0
"""One thread at a time has a guest's logs."""

import threading

from virtlogd_driver.history import exclusive


def test_exclusive() -> None:
    guests = exclusive.Exclusive()
    with guests.guest('a', 0) as got:
        assert got
        with guests.guest('a', 0) as again:
            assert again
        found = []

        def other() -> None:
            for uuid in ('a', 'b'):
                with guests.guest(uuid, 0) as had:
                    found.append(had)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert found == [False, True]
    assert guests._guests == {}
