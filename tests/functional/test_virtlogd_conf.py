# SPDX-License-Identifier: Apache-2.0
"""virtlogd.conf is read here as the installed virtlogd reads it."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from tests.lab import namespace
from tests.lab.wait import until
from tests.unit.virtlogd.test_conf_keys import REFUSED, TAKEN, TAKEN_LATER


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path, as sockets have; user nobody may look into it."""
    path = namespace.DIRECTORY / 'conf'
    path.mkdir()
    yield path
    shutil.rmtree(path)


def takes(directory: Path, text: str) -> bool:
    """Whether virtlogd starts with a file.

    As a user who is not root it has nothing but this directory.
    """
    conf = directory / 'virtlogd.conf'
    conf.write_text(text)
    run = directory / 'run'
    run.mkdir()
    shutil.chown(run, 'nobody')
    process = subprocess.Popen(
        ['setpriv', '--reuid=nobody', '--clear-groups', 'virtlogd', '--config',
         conf, '--pid-file', run / 'pid'],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, env={
            'PATH': os.environ['PATH'],
            **dict.fromkeys(('HOME', 'XDG_RUNTIME_DIR', 'XDG_CONFIG_HOME',
                             'XDG_CACHE_HOME'), str(run))})
    try:
        until(lambda: process.poll() is not None
              or (run / 'libvirt' / 'virtlogd-sock').exists(),
              'virtlogd has read its file')
        return process.poll() is None
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait()


@pytest.mark.parametrize(('text', 'taken'), [
    *((text, True) for text in TAKEN), *((text, False) for text in REFUSED),
    *((text, libvirt.getVersion() >= 12_008_000) for text in TAKEN_LATER)])
def test_virtlogd_reads_it_as_we_do(
        directory: Path, text: str, taken: bool) -> None:
    assert takes(directory, f'{text}\n') is taken
