"""Sources: tars, folders and tables, listed as shards (`listing`) and read as samples (every other module).

The order and the ordinals of the samples in a shard depend on the source only.
"""
