"""Denoisers for hosts other than ComfyUI."""
