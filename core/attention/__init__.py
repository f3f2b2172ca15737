"""Attention control: reading or replacing what a network attends to. See :mod:`.site` for the protocol."""
