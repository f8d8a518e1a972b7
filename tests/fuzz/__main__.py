# SPDX-License-Identifier: Apache-2.0
"""Random input is tried on every target, for a while.

The seed is printed; the same one tries the same, as far as the time goes.
"""

import argparse
import itertools
import random
import sys
import time

import hypothesis

from tests.fuzz.targets import TARGETS

#: Inputs of a target, until it is another's turn.
_ROUND = 100


def main() -> int:
    parser = argparse.ArgumentParser(
        prog='python -m tests.fuzz', description=__doc__)
    parser.add_argument('--seconds', type=float, default=60.0,
                        help='how long, all targets together (60)')
    parser.add_argument('--seed', type=int, default=None,
                        help='of a run that is to be done again')
    parser.add_argument('target', nargs='*', metavar='TARGET',
                        help=f'{", ".join(TARGETS)} (all of them)')
    arguments = parser.parse_args()
    unknown = set(arguments.target) - set(TARGETS)
    if unknown:
        parser.error(f'no such target: {", ".join(sorted(unknown))}')
    seed = (random.SystemRandom().getrandbits(32)
            if arguments.seed is None else arguments.seed)
    print(f'seed {seed}', flush=True)
    names = arguments.target or list(TARGETS)
    count = dict.fromkeys(names, 0)
    end = time.monotonic() + arguments.seconds
    for turn in itertools.count():
        for name in names:
            if time.monotonic() >= end:
                for done, inputs in count.items():
                    print(f'{inputs:8} inputs of {done}')
                return 0
            if not _holds(name, seed + turn):
                print(f'{name} does not hold: python -m tests.fuzz '
                      f'--seed {seed + turn} {name}', file=sys.stderr)
                return 1
            count[name] += _ROUND
    raise AssertionError('the turns do not end')


def _holds(name: str, seed: int) -> bool:
    """Try some inputs of one target."""
    check = hypothesis.seed(seed)(hypothesis.settings(
        max_examples=_ROUND, database=None, deadline=None,
        print_blob=True,
        suppress_health_check=list(hypothesis.HealthCheck))(TARGETS[name]()))
    try:
        check()
    except Exception:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        return False
    return True


if __name__ == '__main__':
    sys.exit(main())
