"""Trackers of the metrics of a run, one a file, besides metrics.jsonl. None of them imports torch."""
