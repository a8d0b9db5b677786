"""The questions to a judge and their layout: templates, prompts as tokens or as text, the order of a pair, and the
secret behind the nonces. Nothing here runs a model. Start with `prompts`."""
