"""Nodes of Learnable Regions."""
