"""The nodes of DeltaEdit."""
