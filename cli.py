"""Semantic Editing command line."""
