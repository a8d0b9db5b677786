"""What verdicts are worth, as figures: intervals, agreement, consistency, and the calibration of a judge's margins. No
judge is asked here. Start with `intervals`, which everything else prints its figures with."""
