"""A small assistant world and the models for it, grown from nothing.

A machine without any weights gets a tiny language, prompts, a constitution, oracles that know what a good
answer is, and a policy, a judge and an audit judge that learned the language in a couple of minutes.
"""
