"""The constitution: principles, their questions to a judge, and the weights and rules between them.

Start with `constitution`, which loads and hashes a file; `file` reads its YAML, `sections` defines its smaller parts,
`rules` weighs principles, `imports` reads the constitutions of other tools.
May import: errors, records, files.
"""
