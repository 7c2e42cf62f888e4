"""Every benchmark. `python -m jobs.bench NAME` prints ratios: interleaved rounds, medians."""
