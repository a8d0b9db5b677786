"""Training in several stages: `solon align FILE`. Each stage makes files from those of earlier ones, once.

`file` reads the settings, `plan` names what each stage depends on, `execute` makes what is missing, `stages/` has one
file for each kind of stage. May import: everything below; a stage's heavy work runs in a process of its own.
"""
