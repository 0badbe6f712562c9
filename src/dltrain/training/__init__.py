"""One run: config in, run folder out."""
