"""Files of users: prompts and rows in every format, settings in TOML, and messages about mistakes in them.

Start with `prompts`, which reads the prompts of a run, or `validation`, which describes mistakes found by pydantic.
Every reader bounds its input; a bad file is an InputError with the place, never a traceback. May import: errors,
records.
"""
