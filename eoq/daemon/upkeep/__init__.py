"""Upkeep: what an operator does with the daemon's file from outside: backups, restores, compacting."""
