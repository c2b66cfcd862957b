"""The tables in PostgreSQL, and the statements on them."""
