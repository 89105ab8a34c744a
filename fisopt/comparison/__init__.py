"""Configurations of one pipeline on the same noise: time, likeness, meaning, noise floors."""
