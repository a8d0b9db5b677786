"""Off-policy policy gradients, shared by the objectives `ppo` and `group_relative`.

`objective` is their common base; start there. `losses` and `advantages` are pure functions of tensors, `targets` the
targets of one step, `measure` its metrics, `config` their settings (no torch).
"""
