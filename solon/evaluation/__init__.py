"""Comparing policies by their answers to held-out prompts, with uncertainty over prompts.

`degenerate` finds texts that are no answers, `comparison` has the statistics. Pure: texts and numbers in, figures out.
May import: `solon.feedback.quality`.
"""
