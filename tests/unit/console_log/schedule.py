# SPDX-License-Identifier: Apache-2.0
"""One random schedule writes, rotates, crashes and reads a log."""

import itertools
import random
from collections.abc import Iterator

from tests.unit.console_log.rotating import MemoryDirectory, Rotator, ends
from virtlogd_driver import exception
from virtlogd_driver.console_log import log
from virtlogd_driver.console_log.chain import PATIENT_SCANS
from virtlogd_driver.console_log.descriptor_store import DescriptorStore


class Schedule:
    """A rotator that goes on at random while the reader makes its calls.

    The oracle is the stream. What an answer must be: a run of it, that ends
    where it ended at an instant of the call, no shorter than the limit and
    the files that stayed allow; unless the reader had to begin again often, no
    shorter than what there was at every instant.
    """

    def __init__(self, rng: random.Random, *, kept: bool = False) -> None:
        """
        :param kept: the files stay open from one read to the next
        """
        self.rng = rng
        self.store: DescriptorStore | None = None
        self.directory = MemoryDirectory()
        self.rotator = Rotator(self.directory, rng.choice((0, 1, 1, 2, 3, 5)))
        self.rotator.open()
        self._largest = rng.choice((2, 9, 90))
        #: The chance that something happens before a call of the reader.
        self._busy = rng.choice((0.03, 0.2, 0.6))
        self._most = rng.choice((1, 3, 12))
        self.crashed = False
        self._steps = self._run()
        for _ in range(rng.randrange(40)):
            next(self._steps)
        #: virtlogd's setting, unknown now and then.
        self.max_backups = rng.choice((self.rotator.max_backups, None))
        if kept:
            self.store = DescriptorStore(
                self.directory.open_log, self.directory, sweeper=False)

    def tail(self) -> bool:
        """Read the end; returns whether the answer was exact."""
        limit = self.rng.choice((1, 7, 30, 200, 5000))
        rotator = self.rotator
        before, rotations = rotator.written, rotator.rotations
        rotator.least = before - rotator.kept_from()
        self.directory.before = self._advance
        try:
            read = self._read_tail(limit)
        except exception.LogNotFound:
            assert rotator.max_backups == 0, 'else there is always a file'
            return True
        finally:
            self.directory.before = _nothing
        found = ends(read.data, before, rotator.written)
        assert found, read
        assert len(read.data) <= limit
        if read.exact:
            assert len(read.data) >= min(
                limit, found[-1] - rotator.kept_from()), read
            if self.directory.pauses < PATIENT_SCANS:
                assert len(read.data) >= min(limit, rotator.least), read
        else:
            # After a crash it may look as if a backup had been deleted.
            assert rotator.rotations - rotations > 1 or self.crashed, read
        self._check_open()
        return read.exact

    def go_on(self, steps: int) -> None:
        """Let virtlogd do so much; bytes of the stream may run out."""
        for _ in range(steps):
            next(self._steps)

    def _read_tail(self, limit: int) -> log.LogRead:
        name = self.rotator.name
        self.directory.pauses = 0
        if self.store is None:
            return log.read_tail(
                self.directory, name, limit, max_backups=self.max_backups)
        return self.store.read_tail(f'/memory/{name}', limit,
                                    self.max_backups)

    def _read_from(self, position: log.Position | None,
                   limit: int) -> log.LogSince:
        name = self.rotator.name
        if self.store is None:
            return log.read_from(
                self.directory, name, position, limit,
                max_backups=self.max_backups)
        return self.store.read_from(f'/memory/{name}', position, limit,
                                    self.max_backups)

    def close(self) -> None:
        """Nothing is left open."""
        if self.store is not None:
            self.store.close()
        self._check_open()

    def _check_open(self) -> None:
        """Nothing is open but what is held."""
        held = 0 if self.store is None else self.store.descriptors()
        assert len(self.directory.opened) == held

    def follow(self, reads: int) -> int:
        """Read on from a position; returns how often that was lost."""
        rotator = self.rotator
        position: log.Position | None = None
        at = 0
        lost = 0
        for _ in range(reads):
            limit = self.rng.choice((3, 20, 200, 5000))
            self.directory.before = self._advance
            try:
                since = self._read_from(position, limit)
            except exception.LogNotFound:
                assert rotator.max_backups == 0, 'else there is always a file'
                continue
            finally:
                self.directory.before = _nothing
            assert len(since.data) <= limit
            begins = at
            if since.data and (position is None or since.missed is None):
                assert since.position is not None
                begins = rotator.start_of(since.position, since.data)
            if since.missed is None:
                assert position is not None
                lost += 1
                file_began = at - position.offset
                # See tail.
                assert self.crashed or rotator.kept_from() > file_began, (
                    'it was still there')
                assert begins >= file_began
            assert rotator.is_stream(begins, since.data), (begins, since)
            if since.data:
                at = begins + len(since.data)
                position = log.Position.parse(str(since.position))
            self._check_open()
            for _ in range(self.rng.randrange(8)):
                next(self._steps)
        return lost

    def _advance(self) -> None:
        if self.rng.random() < self._busy:
            for _ in range(self.rng.randint(1, self._most)):
                next(self._steps)

    def _run(self) -> Iterator[None]:
        """Write for ever; now and then virtlogd dies and is started again."""
        crash = self.rng.choice((0, 0, 0.02))
        while True:
            sizes = (
                self.rng.randint(1, self._largest) for _ in itertools.count())
            for _ in self.rotator.steps(sizes):
                yield
                if self.rng.random() < crash:
                    self.crashed = True
                    break
            self.rotator.open()


def _nothing() -> None:
    pass
