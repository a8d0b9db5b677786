"""Statistics of verdicts: intervals, agreement, consistency, and the calibration of a judge's margins. No judge is
asked here. Start with `intervals`, which all other figures use."""
