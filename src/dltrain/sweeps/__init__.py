"""Sweeps: many jobs of one command, and the table of their results."""
