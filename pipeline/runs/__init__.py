"""The engine of every run: claim, make, create once, count, renew, next pass or stop. No Ray.

Each kind of run (clips, text, an export, an import) says what is open, how it is made, and when it is done: work.py.
"""
