"""The daemon's SQLite file: the store that runs commands, and the reader for queries."""
