# SPDX-License-Identifier: Apache-2.0
"""A command that was started without some of its streams goes on."""

import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
# As a library that is imported first (libffi for ctypes, with Python 3.14).
opened = os.open('/dev/zero', os.O_RDONLY)
from virtlogd_driver.cmd import standard_streams
standard_streams.prepare()
print('output')
print('message', file=sys.stderr)
assert not sys.stdin.read(1)
assert os.read(opened, 1) == bytes(1)
for fd in range(3):
    os.fstat(fd)
"""


@pytest.mark.parametrize(('redirection', 'output', 'message'), [
    ('', b'output\n', b'message\n'),
    ('>&-', b'', b'message\n'),
    ('2>&-', b'output\n', b''),
    ('<&-', b'output\n', b'message\n'),
    ('>&- 2>&- <&-', b'', b'')])
def test_one_that_is_closed_goes_nowhere(
        redirection: str, output: bytes, message: bytes) -> None:
    """Also where a file that was opened since has its number."""
    done = subprocess.run(
        ['bash', '-c', f'"$0" -c "$1" {redirection}', sys.executable, PROGRAM],
        check=False, capture_output=True, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout, done.stderr) == (
        0, output, message)
