# SPDX-License-Identifier: Apache-2.0
"""Put on record what the driver relies on in each supported nova.

Run it when tests/unit/compute/test_seams.py has told of a change, and the
change has been looked at; or when the driver relies on something new. It
downloads nova's newest wheel of each release, and rewrites
tests/peers/seams.json.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.peers import seams  # noqa: E402

RECORD = ROOT / 'tests/peers/seams.json'
RELEASES = (31, 32, 33, 34)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--wheels', type=Path, metavar='DIRECTORY',
                        help='take them from there')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        record(args.wheels or _download(Path(directory)))


def _download(directory: Path) -> Path:
    for release in RELEASES:
        subprocess.run(
            [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps',
             '--dest', directory, f'nova=={release}.*'], check=True)
    return directory


def record(wheels: Path) -> None:
    driver = seams.driver_source(ROOT)
    versions = {}
    found = {}
    for wheel in sorted(wheels.glob('nova-*.whl')):
        version = wheel.name.split('-')[1]
        release = int(version.split('.')[0])
        versions[release] = version
        found[release] = seams.seams(driver, seams.wheel(wheel))
        print(f'nova {version}: {len(found[release])} seams')
    seams.Record(versions, found).dump(RECORD)


if __name__ == '__main__':
    main()
