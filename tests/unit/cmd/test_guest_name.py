# SPDX-License-Identifier: Apache-2.0
import pytest

from virtlogd_driver import exception
from virtlogd_driver.cmd import guest_name
from virtlogd_driver.node.hypervisor import Guest


def guest(name: str, uuid: str) -> Guest:
    return Guest(uuid, name, True, 'running', '<domain/>')


GUESTS = [
    guest('web', '11111111-aaaa-4000-8000-000000000001'),
    guest('web-2', '11111111-bbbb-4000-8000-000000000002'),
    guest('instance-0000002a', '2b000000-cccc-4000-8000-000000000003'),
    guest('2b', '33333333-dddd-4000-8000-000000000004'),
]


@pytest.mark.parametrize(('word', 'name'), [
    ('web', 'web'),                     # a whole name, and a beginning
    ('web-', 'web-2'),
    ('inst', 'instance-0000002a'),
    ('2b', '2b'),                       # a name before a UUID
    ('2b0', 'instance-0000002a'),
    ('2B000000-CCCC-4000-8000-000000000003', 'instance-0000002a'),
    ('2b000000cccc40008000000000000003', 'instance-0000002a'),
    ('11111111-b', 'web-2'),
])
def test_found(word: str, name: str) -> None:
    assert guest_name.find(GUESTS, word).name == name


@pytest.mark.parametrize(('word', 'message'), [
    ('we', "'we' is the beginning of 2 guests: web, web-2"),
    ('11111111', 'the beginning of 2 guests'),
    ('wbe', 'Did you mean web'),
    ('instance-000002a', 'Did you mean instance-0000002a?'),
    ('2b000000-cccc-4000-8000-000000000009',
     'Did you mean instance-0000002a?'),
    ('nothing like it', '"virtlogd-console list" shows'),
    ('', 'There is no guest'),
])
def test_not_found(word: str, message: str) -> None:
    with pytest.raises(exception.GuestNotFound) as raised:
        guest_name.find(GUESTS, word)
    assert message in str(raised.value)


def test_a_message_is_not_endless() -> None:
    many = [guest(f'vm{n}', f'{n:08x}-0000-4000-8000-000000000000')
            for n in range(100)]
    with pytest.raises(exception.GuestNotFound, match=r'100 guests.*, \.\.\.'):
        guest_name.find(many, 'vm')
