"""The demo: a sample repository, its plan, four scripted agents, and the rows that make them a project."""
