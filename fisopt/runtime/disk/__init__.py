"""Captures on the disk: what one process has captured, another reads, where nothing differs."""
