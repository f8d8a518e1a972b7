# SPDX-License-Identifier: Apache-2.0
"""A nova that is too old is refused."""

import pytest
from nova import version as nova_version

from virtlogd_driver import exception
from virtlogd_driver.compute import release


@pytest.mark.parametrize('version', [
    '31.0.0', '31.0.0.0rc1', '34.0.0', '35.0.0', '100.0.0',
    nova_version.version_string()])
def test_supported(version: str) -> None:
    release.check(version)


@pytest.mark.parametrize('version', ['30.1.2', '9.0.0', '', 'unknown'])
def test_refused_in_one_line(version: str) -> None:
    with pytest.raises(exception.UnsupportedNova) as raised:
        release.check(version)
    assert str(raised.value).startswith(f'nova {version} is too old')
    assert '31.0.0 or newer' in str(raised.value)
    assert '\n' not in str(raised.value)
