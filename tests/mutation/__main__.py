# SPDX-License-Identifier: Apache-2.0
"""A module is broken line by line, and its unit tests have to notice.

cosmic-ray breaks a copy of the checkout. What nobody notices is a survivor,
and has to be explained in survivors.toml, or a test written that notices it.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from tests.mutation.modules import MODULES

ROOT = pathlib.Path(__file__).parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog='python -m tests.mutation', description=__doc__)
    parser.add_argument(
        'module', nargs='*', metavar='MODULE',
        help=f'such as {next(iter(MODULES))} (all of them)')
    arguments = parser.parse_args()
    unknown = set(arguments.module) - set(MODULES)
    if unknown:
        parser.error(f'no tests are named for {", ".join(sorted(unknown))}; '
                     f'there are {", ".join(MODULES)}')
    with tempfile.TemporaryDirectory(dir=_memory()) as directory:
        copy = _copy(pathlib.Path(directory))
        return subprocess.run(
            [sys.executable, '-m', 'tests.mutation.runner',
             *(arguments.module or MODULES)], cwd=copy, check=False,
            env={**os.environ, 'PYTHONPATH': str(copy),
                 'PYTEST_DISABLE_PLUGIN_AUTOLOAD': '1'}).returncode


def _memory() -> str | None:
    """Where fsync takes no time; None: nowhere."""
    memory = '/dev/shm'  # noqa: S108 - a directory is made in it
    return memory if os.access(memory, os.W_OK) else None


def _copy(directory: pathlib.Path) -> pathlib.Path:
    """A copy that may be broken: a run that is cut off leaves nothing."""
    copy = directory / 'checkout'
    names = subprocess.run(
        ['git', 'ls-files', '--cached', '--others', '--exclude-standard'],
        cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in names.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


if __name__ == '__main__':
    sys.exit(main())
