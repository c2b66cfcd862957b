"""The migrations of the daemon's file: numbered SQL scripts, applied in order, never edited once released."""
