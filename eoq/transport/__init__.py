"""Connections to the daemon, and the channels that make them again and repeat what was under way."""
