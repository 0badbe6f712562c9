"""Command line and YAML to one checked config. Imports no torch."""
