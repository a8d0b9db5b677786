"""The live page of runs: `solon watch`. It reads the files of runs; it writes `human-labels.jsonl` and nothing else."""
