"""Console output, files, trackers and HTML pages of runs."""
