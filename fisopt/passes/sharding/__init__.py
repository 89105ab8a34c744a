"""Sharding: what becomes of a Program whose values are divided among ranks."""
