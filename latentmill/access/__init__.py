"""Reach stored bytes: open files of the process, ranged requests to S3."""
