"""What eoq needs of the operating system: paths, forks, file watching, SQLite's settings."""
