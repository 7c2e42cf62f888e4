"""Sources: tars, folders and tables, listed as shards (`listing`) and read as samples (every other module).

The order and the ordinals of a shard follow from the source alone.
"""
