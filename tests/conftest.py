# SPDX-License-Identifier: Apache-2.0
import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        '--regenerate-output', action='store_true',
        help='write golden files anew instead of comparing with them')
