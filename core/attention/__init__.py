"""The second seam: attention control. See :mod:`.site` for the protocol."""
