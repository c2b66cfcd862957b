"""The daemon. Nothing here is imported by an application, and nothing here imports the clients.

Read it downwards: `server` (sockets) → `broker` (what a request means) → `writer` (group commit) → `store` (SQL).
"""
