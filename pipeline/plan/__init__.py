"""The plan: which shards exist, which are done, what is staged, and which clips are tried again."""
