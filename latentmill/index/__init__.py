"""The index of an output in the local cache: build it, read it, select rows of it."""
