"""Nodes of the demo world."""
