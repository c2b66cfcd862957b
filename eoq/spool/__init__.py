"""The spool: messages left as files in a folder, each sent once."""
