"""From a prompt to weights that every engine runs: what the stages of `solon.loop` are made of.

Start with `rollout`, which generates, then `publication`, which hands new weights out and attests them; `salvage` keeps
the tokens of an engine that is lost, `prompt_screen` renders every prompt before a run starts.
May know: engines, models, files, host and the protocols of the loop.
"""
