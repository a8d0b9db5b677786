"""What verdicts are worth, as figures: intervals, agreement, consistency, and calibration of a judge's margins. Pure
functions of numbers; no judge is asked here. Start with `intervals`, which everything else prints its figures with."""
