"""Sweeps: many runs of one command, and the table of their results."""
