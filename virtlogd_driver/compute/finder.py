# SPDX-License-Identifier: Apache-2.0
"""A finder makes this driver known as ``nova.virt.virtlogd_driver``.

nova-compute imports ``'nova.virt.%s' % CONF.compute_driver``
(nova/virt/driver.py, load_compute_driver) and knows no entry point for it.
``virtlogd_driver_nova.pth`` installs the finder below in every Python process
of the environment. It answers for one name, imports nothing until asked for
it, and comes last, so a real module of that name wins.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

ALIAS = 'nova.virt.virtlogd_driver'


class _AliasLoader(Loader):

    def exec_module(self, module: ModuleType) -> None:
        driver = importlib.import_module('virtlogd_driver.compute.driver')
        vars(module)['VirtlogdDriver'] = driver.VirtlogdDriver


class NovaFinder(MetaPathFinder):
    """Finds ``nova.virt.virtlogd_driver``, and nothing else."""

    @classmethod
    def find_spec(cls, fullname: str, path: Sequence[str] | None,
                  target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != ALIAS:
            return None
        return ModuleSpec(fullname, _AliasLoader())


def install() -> None:
    """Put the finder at the end of ``sys.meta_path``, once."""
    if NovaFinder not in sys.meta_path:
        sys.meta_path.append(NovaFinder)
