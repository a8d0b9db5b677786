"""Learners: they update a network's weights.

`core` has the one `Trainer` and the parts that every training needs, `networks` the networks beside the policy,
`policy_gradient` the mathematics of off-policy PPO, `objectives` one small class per objective.
`build` makes the learner of a run from `[learn]`; start there. Nothing here knows Ray.
"""
