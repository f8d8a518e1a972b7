# SPDX-License-Identifier: Apache-2.0
"""nova calls the compute driver, which is made of the modules here."""
