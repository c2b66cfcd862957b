"""What is on the wire to a NATS server: its URL, a connection, names, and messages."""
