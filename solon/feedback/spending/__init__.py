"""What labels cost and what holds it down: limits that all callers of an endpoint share, the cap on money, and the
count of tokens, seconds and money. Start with `cost` for what was spent, with `limits` for what may be."""
