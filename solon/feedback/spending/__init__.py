"""Cost of labels and its limits: limits shared by all callers of an endpoint, the cap on money, and the accounting of
tokens, seconds and money. Start with `cost` for spending, with `limits` for limits."""
