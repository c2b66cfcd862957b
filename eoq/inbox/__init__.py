"""The inbox: a handler's writes and the processed id in one transaction of the application's file."""
