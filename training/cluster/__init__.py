"""Runs and data as batch jobs of Slurm: what to ask for, the job scripts, and the checks on the nodes."""
