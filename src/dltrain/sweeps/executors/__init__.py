"""Who runs the jobs of a sweep: local processes, Ray, Slurm, a launcher of Hydra."""
