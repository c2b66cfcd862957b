"""The broker: messages come in, go out to consumers, and are settled or given back."""
