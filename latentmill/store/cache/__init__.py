"""Keep on a local disk, of this user alone: what was built once a machine, arrays that processes share, ranges."""
