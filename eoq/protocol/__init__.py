"""The wire: limits, encoding, checks of values, and what each request asks and its reply means."""
