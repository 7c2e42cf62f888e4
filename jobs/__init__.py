"""What a person or a scheduler runs: `latentmill encode`, `status`, `verify`, and the demo and the benchmarks."""
