# SPDX-License-Identifier: Apache-2.0
"""Tests copy to an instance directory what another host would."""

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from virtlogd_driver.history import record

DEPARTURE = '0123456789abcdef' * 2


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def as_old(directory: pathlib.Path, histories: Mapping[str, bytes],
           boots: Sequence[Mapping[str, Any]] = ()) -> pathlib.Path:
    """As earlier versions of this driver staged it.

    :returns: the list, without which nothing is put in place
    """
    staging = directory / 'console.moving'
    staging.mkdir()
    files = dict(histories)
    if boots:
        files['console.boots'] = '\n'.join(map(json.dumps, boots)).encode()
    for name, data in files.items():
        (staging / f'{name}.{_digest(data)}').write_bytes(data)
    listed = json.dumps(sorted(
        path.name for path in staging.iterdir())).encode()
    path = staging / f'console.staged.{_digest(listed)}'
    path.write_bytes(listed)
    return path


def as_now(directory: pathlib.Path, histories: Mapping[int, bytes], *,
           boots: Sequence[record.Boot] = (), stint: bool = False,
           generation: int = 1, departure: str = DEPARTURE,
           received: Sequence[str] = ()) -> pathlib.Path:
    """:returns: the record, without which nothing is put in place"""
    staging = directory / 'console.moving'
    staging.mkdir()
    for port, data in histories.items():
        (staging / f'history.{port}').write_bytes(data)
    path = staging / record.FILE
    path.write_bytes(record.Record(departure, stint, tuple(
        record.History(port, generation, len(data), _digest(data), True)
        for port, data in histories.items()), tuple(boots),
        tuple(received)).format())
    return path
