"""Run `python -m jobs.report`."""

from jobs.process import run_command
from jobs.report import main

if __name__ == "__main__":
    run_command(main)
