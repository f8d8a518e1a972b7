# SPDX-License-Identifier: Apache-2.0
"""One thread at a time has a guest's logs."""

import threading
import time

from virtlogd_driver.history import exclusive


def test_no_guest_waits_for_another() -> None:
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
        thread = threading.Thread(target=other, daemon=True)
        thread.start()
        thread.join(60)
        assert found == [False, True]
    assert guests._guests == {}


def test_it_is_waited_for() -> None:
    guests = exclusive.Exclusive()
    found = []

    def other() -> None:
        with guests.guest('a', 600) as had:
            found.append(had)
    thread = threading.Thread(target=other, daemon=True)
    with guests.guest('a', 0):
        thread.start()
        deadline = time.monotonic() + 60
        while not found and guests._guests['a'][1] < 2:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(0.01)
        assert found == []
    thread.join(60)
    assert found == [True]
    assert guests._guests == {}
