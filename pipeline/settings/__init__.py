"""What a run is asked to do, and the Spec that follows from it, or the reason why not."""
