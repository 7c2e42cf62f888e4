"""Chaos: the real job on small shards, killed and poisoned at seeded random moments, then held against four laws.

1. No row lost and no row twice: planned = latents + rejections, and the ids are those of the undisturbed run.
2. The same bytes under `data/` as the undisturbed run; a poison clip costs that clip and nothing else.
3. A reader that polls `data/` all the time never sees a wrong, partial or changing file.
4. Nothing left in staging, and no process left behind.

    python -m tests.chaos --kills 100 --seed 0

Production code holds no hook for any of it: stages are handed to `pipeline.run.run`, kills come from outside.
"""
