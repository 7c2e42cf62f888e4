"""Protect a run from a clip that kills or hangs its worker: strikes, deadlines, and trying a suspect alone."""
