"""The daemon's socket: connections, lines in, replies out."""
