"""Nodes of pix2pix-zero."""
