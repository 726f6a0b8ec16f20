"""Measurements beside their baselines, in one run: `python -m tests.bench`, or `make bench`."""
