"""Runs Solon on a Ray cluster: the run file, preflight checks, launch, and the driver of a whole run."""
