"""Facts from a model's files, read without torch and without loading the model.

Start with `facts`, which combines configuration, tokenizer and weight headers; `sizes` counts bytes, `digest`
identifies a model, `known` lists the models that the installed libraries can run. May import: errors, host.
"""
