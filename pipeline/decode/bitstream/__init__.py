"""Facts that only the bytes of a container or codec tell: disposable frames, extents, invisible frames, GIF."""
