"""Direct alignment: a policy learns from preferences or ratings of answers, without a reward model or advantages.

Losses, and answers laid out so that both of a pair share a forward pass. Objectives: `dpo`
(pairs from a file), `kto` (ratings from a file) and `online_dpo` (labelled groups of a run).
"""
