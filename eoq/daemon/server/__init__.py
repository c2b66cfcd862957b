"""The server: connections, requests in, replies out."""
