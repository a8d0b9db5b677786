"""The constitution: principles, the questions a judge is asked about them, weights and rules between them.

Start with `constitution`, which loads and hashes a file; `file` reads its YAML, `sections` its smaller parts, `rules`
weighs principles, `imports` reads the constitutions of other tools.
May know: errors, records, files.
"""
