"""What a judge is asked and how it is laid out: templates, prompts of tokens or of text, which order of a pair, and the
secret behind the nonces. Nothing here runs a model. Start with `prompts`."""
