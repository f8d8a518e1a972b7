# SPDX-License-Identifier: Apache-2.0
"""The driver tells whether the running nova is one that it works with.

A supported release is; an older one is refused. A newer one is taken if all
that the driver uses or overrides in nova is there, and is called as it was in
the newest supported release: seams.json has that, written by
tools/peers/seams.py. What nova does inside may have changed all the same, so
it is said in a warning.
"""

import inspect
import json
import pkgutil
from collections.abc import Iterator, Mapping
from importlib import metadata, resources
from typing import Any

from nova import objects
from oslo_log import log as logging

from virtlogd_driver import exception
from virtlogd_driver.node import release
from virtlogd_driver.node.release import Support

LOG = logging.getLogger(__name__)

#: Once, as it looks at each directory that Python knows.
_VERSION = metadata.version('virtlogd-driver')
_DRIVER = 'nova.virt.libvirt.driver.LibvirtDriver'


def announce(version: str) -> None:
    """Log which driver runs on which nova, and refuse one that is not known.

    :param version: as nova.version.version_string() gives it, "34.0.0"
    :raises UnsupportedNova: it is too old, or newer and not as it was
    """
    LOG.info('Compute driver virtlogd_driver %s on nova %s', _VERSION,
             version)
    found = release.support(version)
    if found is Support.TOO_OLD:
        raise exception.UnsupportedNova(version, (
            f'is too old for this compute driver, which supports nova '
            f'{release.supported()}: upgrade nova'))
    if found is Support.NEWER:
        change = first_change(known())
        if change:
            raise exception.UnsupportedNova(version, (
                f'is newer than {release.NEWEST}, the newest that this '
                f'compute driver supports, and {change}: install a '
                'virtlogd-driver that supports it'))
        LOG.warning(
            'nova %s is newer than %s, the newest that virtlogd_driver %s was '
            'tried on. What it relies on is as it was, so it starts; upgrade '
            'virtlogd-driver to one that supports this nova.',
            version, release.NEWEST, _VERSION)


def known() -> Mapping[str, str]:
    """What the driver relies on in the newest supported nova.

    :returns: by dotted name, how it is called; "" for what is only there
    """
    text = resources.files(__package__).joinpath('seams.json').read_text()
    seams: dict[str, str] = json.loads(text)
    return seams


def first_change(seams: Mapping[str, str]) -> str | None:
    """What is not as it was, in the nova that is running.

    :returns: the first of them, "nova.x.y is not there"; None: nothing
    """
    # Until then the classes of nova.objects have no names there.
    objects.register_all()
    for name, was in seams.items():
        try:
            now = signature(_resolve(name))
        except (AttributeError, ImportError):
            return f'{name} is not there'
        if was and now != was:
            return f'{name} is called as {now or "no function"}, not {was}'
    return None


def _resolve(name: str) -> Any:
    try:
        return pkgutil.resolve_name(name)
    except AttributeError:
        owner, _, attribute = name.rpartition('.')
        if owner != _DRIVER:
            raise
        init = inspect.unwrap(pkgutil.resolve_name(owner).__init__)
        if attribute not in init.__code__.co_names:
            raise
        # An attribute that the instance gets.
        return None


def signature(thing: Any) -> str:
    """How a function is called: ``(self, instance, timeout=, *args)``.

    Its arguments, and which have a default; decorators and annotations are
    left out. "" for what is no function.
    """
    if isinstance(thing, property):
        thing = thing.fget
    function = inspect.unwrap(getattr(thing, '__func__', thing))
    if not inspect.isfunction(function):
        return ''
    return f'({", ".join(_arguments(inspect.signature(function)))})'


def _arguments(found: inspect.Signature) -> Iterator[str]:
    marks: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: '*',
                             inspect.Parameter.VAR_KEYWORD: '**'}
    for argument in found.parameters.values():
        after = '' if argument.default is argument.empty else '='
        if argument.kind is argument.KEYWORD_ONLY:
            after = f':{after}'
        yield f'{marks.get(argument.kind, "")}{argument.name}{after}'
