"""What lies beside the latents of a row, found by id: joined tables, and the text of an output."""
