"""Connections to the daemon, and channels, which replace a lost connection and repeat the requests in flight on it."""
