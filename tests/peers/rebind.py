# SPDX-License-Identifier: Apache-2.0
"""nova and its tests get another class where they look for ``LibvirtDriver``.

To be done before nova's test modules are imported: their decorators take the
class at import.
"""

import sys
from collections.abc import Iterator
from types import ModuleType

_builtin_super = super


def rebind(module: ModuleType, upstream: type, ours: type) -> None:
    """Make ``module.LibvirtDriver`` the subclass, for whoever looks there.

    :param module: nova.virt.libvirt.driver
    :param upstream: the class that it defines
    :param ours: the subclass of it
    """
    for name, attribute in _static(upstream, ours):
        setattr(ours, name, attribute)
    vars(module)['super'] = _super_of(upstream, ours)
    vars(module)['LibvirtDriver'] = ours
    vars(sys.modules['nova.virt.libvirt'])['LibvirtDriver'] = ours


def _static(upstream: type, ours: type) -> Iterator[tuple[str, object]]:
    """Inherited static and class methods.

    fixtures.MonkeyPatch puts an inherited one back as a plain function, so
    that the next test calls it with a self too many.
    """
    for name, attribute in vars(upstream).items():
        if (isinstance(attribute, staticmethod | classmethod)
                and name not in vars(ours)):
            yield name, attribute


def _super_of(upstream: type, ours: type) -> object:
    """``super`` for nova's module, where the name of the class has moved.

    nova 31 and 32 say ``super(LibvirtDriver, self)``; with the subclass under
    that name it would call itself without end.
    """
    def super_(*args: object) -> object:
        if not args:
            local = sys._getframe(1).f_locals
            args = local['__class__'], local['self']
        return _builtin_super(
            upstream if args[0] is ours else args[0],  # type: ignore[arg-type]
            *args[1:])
    return super_
