"""Tests that really kill: the whole product as processes, and kill -9."""
