"""The commands: `latentmill encode`, `status`, `verify`, and the demo and the benchmarks."""
