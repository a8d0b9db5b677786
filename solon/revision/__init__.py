"""Critiques and revisions: a policy improves its own answers by the principles of a constitution (Bai et al. 2022).

`chains` asks the policy turn by turn, `writing` turns finished chains into data sets. May import: `solon.pipeline`,
`solon.evaluation`.
"""
