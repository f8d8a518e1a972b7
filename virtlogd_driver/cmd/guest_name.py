# SPDX-License-Identifier: Apache-2.0
"""An operator names a guest by name, UUID, or the beginning of either.

nova's UUID of an instance is the UUID of its domain.
"""

import difflib
from collections.abc import Iterable
from typing import Protocol, TypeVar

from virtlogd_driver import exception

#: Names that a message gives.
_MOST = 5


class Named(Protocol):
    """It has a name and a UUID."""

    @property
    def name(self) -> str:
        """Give libvirt's name of it."""

    @property
    def uuid(self) -> str:
        """Give its UUID."""


_T = TypeVar('_T', bound=Named)


def find(guests: Iterable[_T], word: str) -> _T:
    """Give the guest that a word names.

    A whole name comes first, then a whole UUID, then what only one begins
    with.

    :raises AmbiguousGuest: several begin with it; the message names some
    :raises GuestNotFound: there is none; the message names near ones
    """
    known = list(guests)
    by_name = [guest for guest in known if guest.name == word]
    uuid = word.lower()
    by_uuid = [guest for guest in known
               if uuid in (guest.uuid, guest.uuid.replace('-', ''))]
    begins = [guest for guest in known if word and (
        guest.name.startswith(word) or guest.uuid.startswith(uuid))]
    for found in (by_name, by_uuid, begins):
        if len(found) == 1:
            return found[0]
    if begins:
        raise exception.AmbiguousGuest(
            f'{word!r} is the beginning of {len(begins)} guests: '
            f'{_some([guest.name for guest in begins])}. Give more of it.')
    near = difflib.get_close_matches(
        word, [guest.name for guest in known], _MOST)
    if not near:
        near = [guest.name for guest in known if guest.uuid in
                difflib.get_close_matches(
                    uuid, [guest.uuid for guest in known], _MOST, 0.8)]
    raise exception.GuestNotFound(
        f'There is no guest {word!r} on this host. '
        + (f'Did you mean {_some(near)}?' if near else
           '"virtlogd-console list" shows what there is.'))


def _some(names: list[str]) -> str:
    shown = ', '.join(sorted(names)[:_MOST])
    return shown if len(names) <= _MOST else f'{shown}, ...'
