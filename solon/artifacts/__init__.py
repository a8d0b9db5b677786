"""Results of stages, kept under a digest of all that they depend on, so that nothing is made twice.

`store` keeps directories, `digests` names content and values, `code` names the source code that a stage runs. Plain
files; no torch, no Ray.
"""
