"""The proof that a handler's effects are exactly once: kill it at each crash point, redeliver, and compare."""
