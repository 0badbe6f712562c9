"""The checkpoint format: written atomically, verified, read without running code."""
