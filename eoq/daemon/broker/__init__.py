"""Sending, receiving and settling: what those requests mean for the store and for who waits."""
