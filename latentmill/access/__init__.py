"""Reach stored bytes: open files of the process, ranged requests to S3, memory that is used again."""
