# SPDX-License-Identifier: Apache-2.0
"""The JSON Schema that the documents give for what a stream writes."""

import json
from pathlib import Path

import jsonschema

_PATH = Path(__file__).parents[3] / 'doc/source/operator/stream.schema.json'

VALIDATOR = jsonschema.Draft202012Validator(
    json.loads(_PATH.read_text()),
    format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
