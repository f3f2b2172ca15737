"""Nodes of the editing engines."""
