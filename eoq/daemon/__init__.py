"""The daemon. No application imports it. Only its relays and its spool reader import the clients.

Read it downwards: `main` (the process) and `assembly` (the parts, joined); then `server` (connections) → `requests`
(typed) → `broker` and `services` (what a request means) → `store.writer` (group commit) → `store.sqlite` (SQL).
"""
