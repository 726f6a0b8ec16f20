"""The agent program: it claims tasks over HTTP, runs a tool on a fresh checkout, and hands back what the tool made."""

__version__ = "0.1.0"
