"""Detect the format of a checkpoint from its content, and load it strictly."""
