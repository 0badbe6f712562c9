"""dltrain: a command-line deep-learning trainer driven by configuration files."""

__version__ = "0.1.0"
