"""Renders report.html of one run and of several runs side by side."""
