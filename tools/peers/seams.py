# SPDX-License-Identifier: Apache-2.0
"""What the driver relies on in each supported nova is put on record.

Run it when tests/unit/compute/test_seams.py has told of a change, and the
change has been looked at; or when the driver relies on something new. It
downloads nova's newest wheel of each release, and rewrites
tests/peers/seams.json, and virtlogd_driver/compute/seams.json: how what it
relies on is called in the newest release, by which the driver decides whether
a nova that is newer still will do.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.peers import seams  # noqa: E402
from virtlogd_driver.node import release  # noqa: E402

RECORD = ROOT / 'tests/peers/seams.json'
RELEASES = range(release.OLDEST, release.NEWEST + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--wheels', type=Path, metavar='DIRECTORY',
                        help='take them from there')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        write(args.wheels or _download(Path(directory)))


def _download(directory: Path) -> Path:
    for number in RELEASES:
        subprocess.run(
            [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps',
             '--dest', directory, f'nova=={number}.*'], check=True)
    return directory


def write(wheels: Path) -> None:
    driver = seams.driver_source(ROOT)
    versions = {}
    found = {}
    for wheel in sorted(wheels.glob('nova-*.whl')):
        version = wheel.name.split('-')[1]
        number = int(version.split('.')[0])
        versions[number] = version
        found[number] = seams.seams(driver, seams.wheel(wheel))
        print(f'nova {version}: {len(found[number])} seams')
    record = seams.Record(versions, found)
    record.dump(RECORD)
    seams.RUNNING.write_text(
        json.dumps(record.called(release.NEWEST), indent=1) + '\n')


if __name__ == '__main__':
    main()
