"""What nodes of several techniques share: inputs, reports, sockets, edits along a trajectory."""
