"""Off-policy policy gradients, shared by the objectives `ppo` and `group_relative`.

`objective` is their common base; start there. `losses` and `advantages` are pure functions of tensors, `targets` what
one step aims at, `measure` what it reports, `config` their settings (no torch).
"""
