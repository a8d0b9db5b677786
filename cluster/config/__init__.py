"""The run file: one TOML, every section owned and checked by the class that uses it.

Start with `run_file`; `sections` places engines and the learner, `labels` selects nodes, `fitting` fits defaults to the
machine, `input_digests` tells whether a resume has the same inputs.
May import: solon and learners.
"""
