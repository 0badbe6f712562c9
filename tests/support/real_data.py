"""Checksums and folder of the real data sets, read before a test hides the environment variable."""

import os

from dltrain.data import idx

REAL_SUMS = idx.SUMS
REAL_DATA = os.environ.get("DLTRAIN_DATA")
