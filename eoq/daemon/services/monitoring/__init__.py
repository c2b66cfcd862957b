"""What operators see of the daemon: its status, its queues, why a message waits, and metrics."""
