"""Where a run's figures go besides metrics.jsonl: one file for each tracker. None of them imports torch."""
