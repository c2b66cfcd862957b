"""The other services of the daemon: administration, queries, once, topics, schedules, retention, relays, spool."""
