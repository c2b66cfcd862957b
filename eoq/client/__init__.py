"""The public clients, blocking and asyncio: sending, receiving, transactions, once, administration."""
