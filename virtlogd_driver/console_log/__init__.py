# SPDX-License-Identifier: Apache-2.0
"""A console log consists of files, which are found and read here."""
