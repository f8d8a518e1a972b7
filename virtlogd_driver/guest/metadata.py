# SPDX-License-Identifier: Apache-2.0
"""nova's metadata say in a domain whose server the guest is.

``<nova:instance>`` in ``<metadata>``, as nova/virt/libvirt/config.py writes
it. Its texts are a tenant's words.
"""

from dataclasses import dataclass

from lxml import etree

from virtlogd_driver import exception
from virtlogd_driver.guest import char_device

#: What its namespaces begin with: a version follows.
_NAMESPACE = '{http://openstack.org/xmlns/libvirt/nova/'


@dataclass(frozen=True, slots=True)
class Metadata:
    """The metadata of a guest; None: its domain does not say."""

    #: The server's name, as its user has given it.
    server: str | None = None
    #: UUIDs and names of its project and of the user who made it.
    project: str | None = None
    project_name: str | None = None
    user: str | None = None
    user_name: str | None = None
    #: Name of the flavor.
    flavor: str | None = None
    #: UUID of the image that its root disk was made of.
    image: str | None = None


def parse(domain_xml: str) -> Metadata:
    """Read them from a domain; all are None where nova's are not there."""
    try:
        root = char_device.parse_document(domain_xml)
    except exception.InvalidGuestXML:
        return Metadata()
    instance = _child(root.find('metadata'), 'instance')
    owner = _child(instance, 'owner')
    project, user = _child(owner, 'project'), _child(owner, 'user')
    image = _child(instance, 'root')
    return Metadata(
        _text(_child(instance, 'name')),
        _attribute(project, 'uuid'), _text(project),
        _attribute(user, 'uuid'), _text(user),
        _attribute(_child(instance, 'flavor'), 'name'),
        _attribute(image, 'uuid') if (
            _attribute(image, 'type') == 'image') else None)


def _child(parent: etree._Element | None,
           name: str) -> etree._Element | None:
    for child in () if parent is None else parent:
        if (isinstance(child.tag, str) and child.tag.startswith(_NAMESPACE)
                and child.tag.endswith(f'}}{name}')):
            return child
    return None


def _text(element: etree._Element | None) -> str | None:
    return None if element is None else element.text or None


def _attribute(element: etree._Element | None, name: str) -> str | None:
    return None if element is None else element.get(name)
