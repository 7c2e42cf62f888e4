"""Read an output back, and check everything in it."""
