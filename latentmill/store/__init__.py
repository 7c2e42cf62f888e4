"""Read stored bytes: one client, for training and for the pipeline, which adds writing in `pipeline.storage`.

files.py      Files: list, read, read ranges of one place, local or remote
ranges.py     RangeReader: many ranges at once into given memory, checked
stream.py     Stream: one object from start to end, resumed after a fault
objects.py    Objects: what one remote store can do. s3.py, cloud.py (obstore), other.py (fsspec) do it
retry.py      the only loop that retries
cache/        what is kept on a local disk
"""
