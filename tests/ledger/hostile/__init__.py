"""Diffs that nobody should send, made by the families of reliability.md §2a."""
