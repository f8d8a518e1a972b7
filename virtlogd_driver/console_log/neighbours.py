# SPDX-License-Identifier: Apache-2.0
"""The times of two files of a chain tell whether one goes on from the other.
Pure: times in, word out.

Names alone do not say it. A backup that a lowered max_backups no longer covers
stays for ever, and one that somebody has deleted leaves its neighbours side by
side after the next rotation. What a reader can know:

* virtlogd creates a file in the call that has filled the one before it, so the
  older one was written last when the newer one was born. Neither time is
  changed by a rename, chown, restorecon or a later change of the clock. A file
  that was copied was born after it was written: that says nothing. Nor does
  one that was filled to its last byte: virtlogd makes the next one when there
  is more, which may be much later. Such a file has max_size bytes, in practice
  a multiple of 1024.
* A rotation renames all backups, the oldest first, which sets their change
  times (until somebody changes the owner or the label of all). So a backup
  took no part in the rotation that made a newer one a backup if it was renamed
  before that one was written last. So it is however long a rotation takes on a
  slow host, and whoever has renamed some of them since. As the clock may have
  been set back between the two, it also has to be renamed well before that
  one was.
* A name that is missing between two others is a rotation under way if the
  older file was renamed since the newer one was (or both within one tick of
  the kernel's clock); else somebody has deleted it.
* max_backups, where it is known, says which names count.

Not every file system keeps the time of birth (NFS). There the names and the
change times have to do, and without max_backups nothing is sure.
"""

import enum
from dataclasses import dataclass

#: Longest time between the first and the last step of one rotation, in
#: nanoseconds. Measured: 13 ms.
ROTATION_NS = 500_000_000

#: max_size is a multiple of that many bytes, in practice.
_FULL = 1024


class Verdict(enum.Enum):
    """A verdict says whether the newer file goes on from the older one."""

    YES = enum.auto()
    #: No, or it is not sure.
    NO = enum.auto()
    #: It may be a rotation under way, which ends soon.
    LOOK_AGAIN = enum.auto()


@dataclass(frozen=True, slots=True)
class Times:
    """A file system says these times of a file, in nanoseconds."""

    #: Bytes.
    size: int
    #: When it was renamed, or changed otherwise, last.
    changed: int
    #: When it was written last.
    written: int
    #: When it was created; None: the file system does not say.
    born: int | None


def verdict(
        older: Times, newer: Times, *, renamed: int, filled: int,
        missing: bool, bounded: bool) -> Verdict:
    """Judge two files that were found one after the other.

    :param renamed: the latest change time of all backups that are newer
    :param filled: the latest time at which one of them was written
    :param missing: a name between the two is missing
    :param bounded: max_backups is known, and covers both names
    """
    if older.changed < min(renamed - ROTATION_NS, filled):
        return Verdict.NO
    born_then = _born_as_older_ended(older, newer)
    if born_then is False or (born_then is None and not bounded):
        return Verdict.NO
    if missing and older.changed <= newer.changed:
        return (Verdict.LOOK_AGAIN if older.changed == newer.changed
                else Verdict.NO)
    return Verdict.YES


def _born_as_older_ended(older: Times, newer: Times) -> bool | None:
    """Compare birth and end; None: the times say nothing."""
    if older.born is None or newer.born is None:
        return None
    if abs(newer.born - older.written) <= ROTATION_NS:
        return True
    copied = older.born > older.written + ROTATION_NS
    return None if copied or older.size % _FULL == 0 else False
