"""Scripts that read an export with a trainer's own classes: `python NAME.py CHECKOUT EXPORT OUT`.

Each is run in a process of its own, with nothing of latentmill on its path. It writes OUT, a torch file: {"buckets":
what the trainer says is in its buckets, "batches": [(ids, batch)]}. It exits with NOT_HERE if an import fails.
"""
