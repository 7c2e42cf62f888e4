"""Say before a run what it will make and cost: measure some clips on this machine, and compute the rest."""
