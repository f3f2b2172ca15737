"""Nodes of SPDInv inversion, trajectories of made-up images, and their files."""
