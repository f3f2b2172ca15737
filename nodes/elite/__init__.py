"""Node of ELITE."""
