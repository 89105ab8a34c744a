"""Recipes: what was done to which model, as plain text that is read without running anything."""
