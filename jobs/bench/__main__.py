"""python -m jobs.bench: the same as `latentmill bench`."""

from jobs.bench import main
from jobs.process import run_command

if __name__ == "__main__":
    run_command(main)
