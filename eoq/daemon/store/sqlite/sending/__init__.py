"""Sending: how messages get into the file, from clients and from the export of another file."""
