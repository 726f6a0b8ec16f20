"""Whole walks through the house, in one process."""
