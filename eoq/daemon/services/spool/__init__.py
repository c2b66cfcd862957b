"""The spool as the daemon reads it: its folder, its files, and the order in which they become messages."""
