"""Executors, which run the jobs of a sweep: local processes, Ray or Slurm."""
