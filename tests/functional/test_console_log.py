# SPDX-License-Identifier: Apache-2.0
"""The reader is exact beside a real virtlogd and a guest that writes flat out.

The oracle is what the guest writes: lines with a number, of 15 bytes each.
"""

import itertools
from collections.abc import Callable
from pathlib import Path

import fixtures
import libvirt
import pytest

from tests.lab import guest
from tests.lab.daemons import LibvirtHost
from tests.lab.wait import until
from virtlogd_driver.console_log import reader

Use = Callable[[fixtures.Fixture], fixtures.Fixture]

READS = 5000
BACKUPS = 3
LINE = len(guest.lines(1, 1))


class Stream:
    """All that the guest writes, as far as it was asked for."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._lines = 0

    def end_of(self, data: bytes) -> int | None:
        """Where a run of two lines or more ends; None: it is no run."""
        at = data.find(b'line ')
        start = (int(data[at + 5:at + 13]) - 1) * LINE - at
        end = start + len(data)
        while len(self._bytes) < end:
            self._bytes += guest.lines(self._lines + 1, self._lines + 100000)
            self._lines += 100000
        if start < 0 or self._bytes[start:end] != data:
            return None
        return end


def start_guest(
        use: Use, directory: Path, max_size: int,
        count: int | None = None) -> tuple[libvirt.virDomain, Path]:
    host = use(LibvirtHost(
        directory / 'host', max_size=max_size, max_backups=BACKUPS))
    path = host.log_directory / 'console.log'
    domain = host.connect().createXML(guest.domain_xml(
        host.directory, guest.boot_sector(count=count),
        [guest.pty_serial(path)]))
    return domain, path


@pytest.mark.parametrize('max_size', [
    4 << 10, 64 << 10, pytest.param(2 << 20, marks=pytest.mark.long)])
def test_guest_writes_flat_out(
        max_size: int, use: Use, tmp_path: Path) -> None:
    """Each answer is a run of the stream, none ends before the one before.

    It is no shorter than the limit and the files that are always there.
    """
    _, path = start_guest(use, tmp_path, max_size)
    oldest = path.with_name(f'{path.name}.{BACKUPS - 1}')
    until(oldest.exists, 'the chain is full', 120)
    # virtlogd ends a file at a newline in the last 80 bytes.
    always = BACKUPS * (max_size - 80)
    stream = Stream()
    limits = itertools.cycle((1024, 102400, always, 8 << 20))
    newest = reads = shorter = rotations = 0
    inode = 0
    position = None
    followed = lost = 0
    while reads < READS or rotations < 3:
        limit = next(limits)
        read = reader.read_tail(str(path), limit, max_backups=BACKUPS)
        reads += 1
        end = stream.end_of(read.data)
        assert end is not None, f'read {reads}: {read.data[:200]!r}'
        assert end >= newest
        assert len(read.data) <= limit
        newest = end
        if read.exact:
            assert len(read.data) >= min(limit, always)
        else:
            shorter += 1
        assert read.position is not None
        rotations += read.position.inode != inode
        inode = read.position.inode

        since = reader.read_from(
            str(path), position or read.position, 1 << 20,
            max_backups=BACKUPS)
        if since.missed is None:
            lost += 1
        elif position is None:
            followed = end
        if len(since.data) > 2 * LINE:
            begins = stream.end_of(since.data)
            assert begins is not None
            begins -= len(since.data)
            assert begins == followed or since.missed is None
            assert begins >= followed
            followed = begins + len(since.data)
            position = since.position
    print(f'max_size {max_size}: {reads} reads, 0 wrong, {shorter} shorter; '
          f'{rotations} rotations seen, positions rotated away {lost} times')
    assert shorter <= reads // 1000


def test_the_whole_log_of_a_guest_that_ended(
        use: Use, tmp_path: Path) -> None:
    """Followed while it was written, and read at the end: the same bytes."""
    last = 20000
    domain, path = start_guest(use, tmp_path, 128 << 10, last)
    until(path.exists, 'the log')
    expected = guest.lines(1, last)
    data = b''
    position = None
    while len(data) < len(expected):
        since = reader.read_from(str(path), position, 10000)
        assert since.missed == 0
        data += since.data
        position = since.position
        assert expected.startswith(data)
    domain.destroy()
    assert data == expected
    assert reader.read_tail(str(path), 1 << 20).data == expected
