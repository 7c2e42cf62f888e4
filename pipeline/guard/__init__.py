"""Protect a run from a clip that kills or hangs its worker: strikes, deadlines, and a run alone in a child process."""
