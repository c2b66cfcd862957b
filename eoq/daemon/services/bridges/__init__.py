"""The bridges that the daemon runs: `[[forward]]` and `[[ingest]]` of its configuration."""
