"""Where a run meets a cluster: the run file, preflight checks, launch, and the driver of a whole run."""
