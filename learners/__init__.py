"""Learners: what moves a network's weights.

`core` has the one `Trainer` and what every training needs, `networks` the other networks beside the policy,
`policy_gradient` the mathematics of off-policy PPO, `objectives` one small class for each thing that is minimised.
`build` makes the learner of a run from `[learn]`; start there. Nothing here knows Ray.
"""
