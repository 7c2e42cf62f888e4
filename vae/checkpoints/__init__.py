"""Find the format of a checkpoint by its content, and load it strictly."""
