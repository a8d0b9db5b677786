"""The ledger: which group of answers is where, who holds it under which lease, and what may be trained.

Start with `ledger`, the pure state machine, then `async_ledger`, which adds waiting. `queues` holds the groups,
`staleness` the two rules of age, `snapshot` what a checkpoint keeps, `conservation` the law that nothing is lost.
May import: errors. It sees metadata only, never a payload.
"""
