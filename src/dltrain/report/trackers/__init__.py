"""Trackers of the metrics of a run, one per file, besides metrics.jsonl. None of them imports torch."""
