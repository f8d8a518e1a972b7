# SPDX-License-Identifier: Apache-2.0
"""A stream gives what all guests of a host write to a log system."""
