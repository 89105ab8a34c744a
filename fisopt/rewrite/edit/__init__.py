"""Editing graphs: values and axes of new nodes, parts of the video, blocks in place."""
