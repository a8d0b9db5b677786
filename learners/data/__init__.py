"""Data sets of answers as token ids: preference pairs and demonstrations, read from files and tokenised once.

Prompts and answers get the ids that rollout engines and judges see. May import: `learners.core`, `learners.direct`.
"""
