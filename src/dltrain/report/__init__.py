"""Pages that people open: of one run, and of several runs side by side."""
