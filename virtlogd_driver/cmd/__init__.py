# SPDX-License-Identifier: Apache-2.0
"""Operators type these commands (face 2)."""

import warnings

# oslo.privsep imports eventlet where it is installed, which then says so to
# whoever runs the command. The class would have to be imported from it.
warnings.filterwarnings('ignore', message=r'\s*Eventlet is deprecated')
