"""Graphs as data: written without pickle, read without running anything that a file says."""
