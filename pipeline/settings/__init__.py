"""The settings of a run (Job), and the Spec that follows from them, or a ConfigError."""
