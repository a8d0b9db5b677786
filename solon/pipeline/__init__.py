"""From a prompt to weights that every engine runs: the parts behind the stages of `solon.loop`.

Start with `rollout`, which generates answers, then `publication`, which publishes and attests new weights. `salvage`
saves the tokens of a lost engine; `prompt_screen` renders every prompt before a run starts.
May import: engines, models, files, host and the protocols of the loop.
"""
