"""Files that people hand in or keep: prompts and rows in every format, settings in TOML, and what is said of mistakes.

Start with `prompts`, which reads the prompts of a run, or `validation`, which words what does not fit a pydantic model.
Every reader bounds what it takes in; a bad file is an InputError with the place, never a traceback.
May know: errors, records.
"""
