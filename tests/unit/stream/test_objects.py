# SPDX-License-Identifier: Apache-2.0
"""Each object is one line of JSON, as the schema has it."""

import base64
import json

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.stream.schema import VALIDATOR
from virtlogd_driver.guest.metadata import Metadata
from virtlogd_driver.stream import objects
from virtlogd_driver.stream.boots import Start
from virtlogd_driver.stream.lines import Line
from virtlogd_driver.stream.objects import Formatter, Source

SOURCE = Source('host', 'guest', 'a-uuid', 1, Metadata(
    server='a "name"\n', project='p', user='u', flavor='\u2028', image='i'))


@given(st.binary(max_size=40), st.floats(0, 4e9),
       st.one_of(st.none(), st.builds(Start, st.integers(1, 100),
                                      st.floats(0, 4e9))), st.booleans())
def test_any_line(data: bytes, time: float, boot: Start | None,
                  partial: bool) -> None:
    text = Formatter(SOURCE).line(Line(data, time, 9, partial), boot,
                                  objects.place((1, 2, 3, 4, 5), 10))
    assert text.count('\n') == 1
    assert text.endswith('\n')
    one = json.loads(text.encode())
    VALIDATOR.validate(one)
    assert base64.b64decode(one['raw']) == data if 'raw' in one else (
        one['text'].encode() == data)
    assert ('raw' in one) == ('\N{REPLACEMENT CHARACTER}' in one['text'] and (
        one['text'].encode() != data))
    assert one['server'] == 'a "name"\n'
    assert one['position'] == '1-2-3-a'
    assert one.get('partial', False) == partial


def test_nothing_is_in_it_that_a_terminal_obeys() -> None:
    hostile = '\x9b31mx\x85y\u202e \u2028grün'
    formatter = Formatter(Source('host', hostile, 'a-uuid', 0, Metadata(
        server=hostile)))
    for text in (
            formatter.line(Line(hostile.encode(), 1.0, 9), None, '1-2-3-a'),
            formatter.event(objects.LEFT, 1.0, f'Guest {hostile} has left.')):
        assert text[:-1].isprintable()
        assert 'grün' in text
        one = json.loads(text)
        assert one['server'] == one['guest'] == hostile
        assert one.get('text', hostile) == hostile


def test_the_second_changes_with_the_line() -> None:
    formatter = Formatter(SOURCE)
    times = [json.loads(formatter.line(Line(b'', time, 1), None, '1-2-3-4'))[
        'time'] for time in (0.9996, 1.0, 61.25, 1.0)]
    assert times == ['1970-01-01T00:00:00.999Z', '1970-01-01T00:00:01.000Z',
                     '1970-01-01T00:01:01.250Z', '1970-01-01T00:00:01.000Z']


@pytest.mark.parametrize(('event', 'more'), [
    (objects.STARTED, {}), (objects.STOPPED, {}), (objects.CAME, {}),
    (objects.LEFT, {}), (objects.LOST, {'bytes': None}),
    (objects.LOST, {'bytes': 7}), (objects.DIED, {}), (objects.REVIVED, {})])
def test_events(event: str, more: dict[str, int | None]) -> None:
    VALIDATOR.validate(json.loads(
        Formatter(SOURCE).event(event, 1.5, 'It is so.', **more)))


@pytest.mark.parametrize('event', [
    objects.VIRTLOGD_DOWN, objects.VIRTLOGD_UP])
def test_events_of_the_host(event: str) -> None:
    VALIDATOR.validate(json.loads(objects.host_event(
        {'host': 'host'}, event, 0.0, 'It is so.')))


@pytest.mark.parametrize('one', [
    {'text': 'x'},
    {'time': '1970-01-01T00:00:01.000Z', 'host': 'h', 'event': 'started',
     'message': 'of no guest'},
    {'time': '1970-01-01T00:00:01.000Z', 'host': 'h', 'guest': 'g',
     'uuid': 'u', 'port': 0, 'text': 'x', 'position': '1-2-3-4',
     'another': 1},
    {'time': '1970-01-01T00:00:01.000Z', 'host': 'h', 'guest': 'g',
     'uuid': 'u', 'port': 0, 'event': 'lost', 'message': 'how many?'}])
def test_the_schema_refuses_others(one: dict[str, object]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(one)
