"""Run `python -m jobs.demo`."""

from jobs.demo import main
from jobs.process import run_command

if __name__ == "__main__":
    run_command(main)
