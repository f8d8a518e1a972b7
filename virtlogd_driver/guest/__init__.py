# SPDX-License-Identifier: Apache-2.0
"""What a guest gets is decided here. Values in, values out, no I/O."""
