"""The bridge: messages of a queue go to queues on other machines, each once, over a table in PostgreSQL."""
