"""Deliveries: what is leased, how messages are claimed, settled and given back, and what is remembered of them."""
