"""Ray actors: thin shells around plain classes. What an actor does is tested without Ray, in the class it hosts.

Payloads never pass through the driver or the ledger: a worker's return value is owned by whoever called it, so it
outlives the worker, and only its reference travels, boxed in a list so that Ray does not open it on the way.
"""
