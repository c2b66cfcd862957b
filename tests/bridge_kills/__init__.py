"""Kills in a system of several machines: sender, forwarder, engine, ingesters, daemons and workers, at random."""
