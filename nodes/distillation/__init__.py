"""Nodes of distilled edits."""
