"""NATS JetStream as the engine of a bridge: a stream, whose partitions belong to one machine each."""
