"""Who drives a run: the driver, the ledger, claims, progress, stop, pools, and Ray beside Ray Data."""
