"""The outbox: messages stored in the application's transaction, and the relay that sends them."""
