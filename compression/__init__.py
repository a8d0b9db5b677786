"""Smaller copies of aligned models that kept their alignment.

Start with `workflow`, the steps of `solon compress`; `gate/` decides, `sensitivity` and `assignment` choose formats,
`export` writes. `quantise` makes judges in fewer bits, `gguf/` reads models from GGUF files.
May import: solon, learners.
"""
