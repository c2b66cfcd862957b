"""The configuration: settings, the file, where each value came from, reloading."""
