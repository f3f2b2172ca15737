"""Editing engines over an inversion: Prompt-to-Prompt, MasaCtrl, Plug-and-Play."""
