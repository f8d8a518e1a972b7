# SPDX-License-Identifier: Apache-2.0
"""Which guest is meant: by name, UUID, or the beginning of either.

nova's UUID of an instance is the UUID of its domain.
"""

import difflib
from collections.abc import Iterable

from virtlogd_driver import exception
from virtlogd_driver.node.hypervisor import Guest

#: Names that a message gives.
_MOST = 5


def find(guests: Iterable[Guest], word: str) -> Guest:
    """Give the guest that a word names.

    A whole name comes first, then a whole UUID, then what only one begins
    with.

    :raises GuestNotFound: none, or several; the message names some
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
        raise exception.GuestNotFound(
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
