"""What the files of a model say, read without torch and without loading the model.

Start with `facts`, which puts together configuration, tokenizer and weight headers; `sizes` counts bytes, `digest`
tells two models apart, `known` lists what the installed libraries can run.
May know: errors, host.
"""
