"""Prints: short values by which networks, patches and prompts are known by their content."""
