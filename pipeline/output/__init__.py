"""The layout of an output: its paths, its files, and how they are written and read back."""
