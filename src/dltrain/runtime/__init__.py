"""Where and how things run: device, precision, processes, signals, files. Knows no config, no data."""
