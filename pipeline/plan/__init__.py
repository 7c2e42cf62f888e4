"""Which shards there are, which are done, what is staged, and what is tried again."""
