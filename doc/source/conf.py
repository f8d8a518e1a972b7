# SPDX-License-Identifier: Apache-2.0
"""Sphinx: ``tox -e docs``."""

project = 'virtlogd-driver'
author = 'virtlogd-driver contributors'

extensions = [
    'oslo_config.sphinxext',
    'reno.sphinxext',
]
html_theme = 'alabaster'
html_theme_options = {
    'description': 'A console log and an interactive console at once',
    'fixed_sidebar': True,
    'page_width': '1040px',
}
html_static_path = ['_static']
html_show_sourcelink = False
# What comes on one line is meant to.
pygments_style = 'friendly'
