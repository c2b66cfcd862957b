"""The wire: its limits, its encoding, the checks of arguments, and each request with the reading of its reply."""
