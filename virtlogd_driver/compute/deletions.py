# SPDX-License-Identifier: Apache-2.0
"""When nova deletes a guest's files: whether its log is kept.

nova deletes them whenever a guest leaves a host: most of the times it lives
on. Its log is kept where nova deletes the server itself, and where its boot
failed here, wherever nova boots it next. What is kept, and until when, is in
history/deleted.py.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

from nova import exception as nova_exception
from nova.compute import task_states, vm_states
from nova.virt.libvirt.utils import get_instance_path
from oslo_log import log as logging

from virtlogd_driver.compute.nova_edge import field
from virtlogd_driver.compute.options import Options
from virtlogd_driver.history import deleted, files, history, logs

LOG = logging.getLogger(__name__)

#: nova starts a guest that is new on this host: a build or an unshelve, an
#: evacuation, a resize to another cell.
_BOOTING = (task_states.SPAWNING, task_states.REBUILD_SPAWNING,
            task_states.RESIZE_FINISH)
_STAYS = ('Logs of deleted guests stay longer than [virtlogd] keep_deleted '
          'and keep_deleted_bytes say. See to the file system of '
          'instances_path')


def keeping_of(options: Options) -> deleted.Keeping:
    """What is configured now."""
    return deleted.Keeping(
        options.instances_path, options.host, options.virtlogd.keep_deleted,
        options.virtlogd.keep_deleted_bytes)


def clean(keeping: deleted.Keeping) -> list[deleted.Entry]:
    """Remove the logs of deleted guests that are to go.

    :returns: those that had their time before them
    :raises OSError: some stay
    """
    return deleted.clean(keeping, time.time())


def say(keeping: deleted.Keeping, early: list[deleted.Entry]) -> None:
    """Log what was removed before its time."""
    for entry in early:
        LOG.info('The log of deleted guest %s was removed before its time, '
                 'for [virtlogd] keep_deleted_bytes = %d', entry.uuid,
                 keeping.limit)


def is_deleted(instance: Any, host: str) -> bool:
    """Whether nova deletes a server for good.

    One that was evacuated may be among the deleted that can be restored, when
    its old host is back.

    :param instance: nova's Instance
    :param host: name of this host
    """
    return bool(
        instance.get('deleted', False)
        or instance.get('task_state', None) == task_states.DELETING
        or (instance.get('vm_state', None) == vm_states.SOFT_DELETED
            and instance.get('host', None) == host))


def failed_boot(instance: Any, error: BaseException | None) -> bool:
    """Whether nova deletes the files of a guest as its boot failed here.

    :param error: that nova handles just now. There is none where a host that
        was lost deletes a guest that is just evacuated from it.
    """
    return (error is not None
            and instance.get('task_state', None) in _BOOTING)


class Deletions:
    """nova deletes the files of guests on this host."""

    def __init__(self, options: Options,
                 kept: Callable[[], history.History]) -> None:
        """
        :param kept: gives what keeps histories, with today's options
        """
        self._options = options
        self._kept = kept
        #: Guests whose log was not kept, or not all of it, since nova-compute
        #: was started.
        self.failed = 0

    def files(self, instance: Any) -> None:
        """Keep the log of a guest that is gone; nova deletes its files next.

        What lies beside its directory is removed.
        """
        error = sys.exc_info()[1]
        with history.errors_logged(instance, history.NOT_KEPT):
            directory = get_instance_path(instance)
            gone = is_deleted(instance, self._options.host)
            kept = True
            if gone:
                kept = self.keep(instance, directory, 'deleted')
            elif failed_boot(instance, error):
                kept = self.keep(instance, directory,
                                 f'boot failed: {_reason(error)}')
            if not kept:
                # What nova does not delete is for Histories to keep.
                self.failed += 1
            # No host keeps the log of one that is shelved.
            elif gone or instance.get('task_state', None) == (
                    task_states.SHELVING_OFFLOADING):
                self._kept().remove(instance, instance.uuid, directory)

    def keep(self, instance: Any, directory: str, why: str) -> bool:
        """Keep what there is here of a guest's log, if that is wished.

        :param directory: path of the instance directory
        :returns: False: it is wished, and some is not kept
        """
        keeping = keeping_of(self._options)
        if keeping.seconds:
            kept = self._kept().keep_deleted(
                instance, directory, keeping, _about(instance, why))
            self._clean(keeping)
            return kept
        with history.errors_logged(instance):
            files.remove_tree(logs.deleted_directory(directory))
        return True

    def look_around(self, starting: bool = False) -> None:
        """Go on with what was begun.

        :param starting: nova-compute starts
        """
        keeping = keeping_of(self._options)
        with history.errors_logged(None, _STAYS):
            for directory in deleted.begun(keeping.instances_path):
                self._kept().finish_deleted(directory, keeping)
        if starting or not self._options.virtlogd.health_interval:
            self._clean(keeping)

    @staticmethod
    def _clean(keeping: deleted.Keeping) -> None:
        with history.errors_logged(None, _STAYS):
            say(keeping, clean(keeping))


def _about(instance: Any, why: str) -> deleted.About:
    try:
        name = str(instance.name)
    except (nova_exception.NovaException, NotImplementedError):
        name = ''
    return deleted.About(
        name, str(field(instance, 'display_name') or ''),
        str(field(instance, 'project_id') or ''), why)


def _reason(error: BaseException | None) -> str:
    return ' '.join(str(error).split()) or type(error).__name__
