"""Decoded tiles, features and bags."""
