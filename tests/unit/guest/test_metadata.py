# SPDX-License-Identifier: Apache-2.0
"""Whose server a guest is, as nova's metadata say."""

import pytest

from tests.unit import fake_libvirt
from virtlogd_driver.guest.metadata import Metadata, parse

NOVA = '''<metadata>
  <nova:instance
      xmlns:nova="http://openstack.org/xmlns/libvirt/nova/1.1">
    <nova:package version="34.0.0"/>
    <nova:name>web &lt;3&gt;</nova:name>
    <nova:creationTime>2026-11-25 10:00:00</nova:creationTime>
    <nova:flavor name="m1.small" id="1"><nova:memory>192</nova:memory>
    </nova:flavor>
    <nova:owner>
      <nova:user uuid="1c9e">kim</nova:user>
      <nova:project uuid="5f0c">shop</nova:project>
    </nova:owner>
    <nova:root type="image" uuid="70a5"/>
  </nova:instance>
</metadata>'''


def domain(metadata: str) -> str:
    return fake_libvirt.domain_xml().replace(
        '</name>', f'</name>{metadata}', 1)


def test_of_a_server() -> None:
    assert parse(domain(NOVA)) == Metadata(
        'web <3>', '5f0c', 'shop', '1c9e', 'kim', 'm1.small', '70a5')


def test_a_server_that_boots_from_a_volume_has_no_image() -> None:
    assert parse(domain(NOVA.replace('type="image"', 'type="volume"'))
                 ).image is None


@pytest.mark.parametrize('xml', [
    fake_libvirt.domain_xml(),
    domain('<metadata/>'),
    domain('<metadata><other:instance xmlns:other="http://other/">'
           '<other:name>x</other:name></other:instance></metadata>'),
    domain(NOVA.replace('<nova:owner>', '<!-- --><nova:name/>').replace(
        '</nova:owner>', '').replace('web &lt;3&gt;', '')
        .replace('nova/1.1', 'other')),
    '<domain', '<other/>'])
def test_where_nova_says_nothing(xml: str) -> None:
    assert parse(xml) == Metadata()
