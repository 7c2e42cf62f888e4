"""The steps of the graph: read, decode, encode. Each is a function or a class that needs no Ray."""
