"""Nodes of CASO."""
