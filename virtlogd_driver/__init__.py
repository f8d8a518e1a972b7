# SPDX-License-Identifier: Apache-2.0
"""A nova compute driver gives guests a log and a serial console at once."""
