"""The real data sets, where the environment names them; read before a test hides the variable."""

import os

from dltrain.data import idx

REAL_SUMS = idx.SUMS
REAL_DATA = os.environ.get("DLTRAIN_DATA")
