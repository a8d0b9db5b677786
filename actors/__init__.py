"""Ray actors: thin shells around plain classes. What an actor does is tested without Ray, in the class it hosts.

Payloads never pass through the driver or the ledger: the caller owns a worker's return value, so the value outlives the
worker. Only its reference is passed on, boxed in a list so that Ray does not resolve it on the way.
"""
