"""Changes of the daemon's file: typed commands, and the writer that commits them in groups."""
