"""Facts read directly from the bytes of a container or codec: disposable and invisible frames, edits, extents, GIF."""
