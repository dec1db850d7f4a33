"""Novels to token files."""
