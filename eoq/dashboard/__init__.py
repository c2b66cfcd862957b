"""The dashboard: queues, messages, schedules and dead letters in a browser of the same machine.

It needs the extra ``dashboard``. It is a client of the daemon like any other: it uses the public asynchronous client
only, and whatever it can do, the commands and both clients can do.
"""
