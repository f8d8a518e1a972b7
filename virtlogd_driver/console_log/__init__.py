# SPDX-License-Identifier: Apache-2.0
"""The bytes of a console log: which files it is made of, and reading them."""
