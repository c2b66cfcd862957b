"""The parts of the store, one subject each: every statement that changes the daemon's file."""
