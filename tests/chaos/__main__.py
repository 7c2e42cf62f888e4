"""Play the chaos, print a table; exit code 1 if a law broke.

python -m tests.chaos [--kills 100] [--seed 0] [--job text] [--scenario NAME ...]
"""

from __future__ import annotations

import argparse
import signal
import sys
import time

from tests.chaos.lab import Lab, LawBrokenError, lab
from tests.chaos.nodes import kill_raylet
from tests.chaos.scenarios import (
    Result,
    Scenario,
    kill_driver,
    kill_workers,
    poisoned_decoder,
    poisoned_encoder,
    stop,
    two_runs,
)
from tests.chaos.stores import full_disk, full_store, kill_after_put, read_only
from tests.chaos.text import TEXT, growth
from tests.chaos.work import ENCODE, Work

Scenarios = dict[str, tuple[Scenario, float]]
"""By name, each with its share of the kills."""

SCENARIOS: Scenarios = {
    "driver": (kill_driver, 0.25),
    "decode-worker": (kill_workers("decode"), 0.4),
    "encode-actor": (kill_workers("Encode"), 0.2),
    "poison-decode": (poisoned_decoder, 0),
    "poison-encode": (poisoned_encoder, 0),
    "raylet": (kill_raylet, 0.05),
    "after-put": (kill_after_put, 0.03),
    "sigterm": (stop, 0.07),
    "two-runs": (two_runs, 0),
    "full-disk": (full_disk, 0),
    "full-store": (full_store, 0),
    "read-only": (read_only, 0),
}

TEXT_SCENARIOS: Scenarios = {
    "driver": (kill_driver, 0.3),
    "growth": (growth, 0.15),
    "read-task": (kill_workers("read"), 0.1),
    "encode-actor": (kill_workers("Encode"), 0.15),
    "store-task": (kill_workers("store"), 0.05),
    "raylet": (kill_raylet, 0.1),
    "after-put": (kill_after_put, 0.1),
    "sigterm": (stop, 0.1),
    "two-runs": (two_runs, 0),
    "full-disk": (full_disk, 0),
    "full-store": (full_store, 0),
    "read-only": (read_only, 0),
}

JOBS: dict[str, tuple[Work, Scenarios]] = {"encode": (ENCODE, SCENARIOS), "text": (TEXT, TEXT_SCENARIOS)}


def main() -> int:
    """Run the scenarios that were asked for; print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="in all; shared out over the scenarios that kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--job", choices=[*JOBS], default="encode")
    parser.add_argument("--scenario", action="append", help="only this one (repeatable)")
    options = parser.parse_args()
    work, scenarios = JOBS[options.job]
    names = options.scenario or [*scenarios]
    if unknown := set(names) - scenarios.keys():
        parser.error(f"--scenario must be one of {', '.join(scenarios)}, got {', '.join(unknown)}")
    whole = sum(scenarios[name][1] for name in names) or 1.0
    results = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the lab cleans up on its way out
    with lab(options.seed, work) as place:
        print(f"seed {options.seed}; undisturbed run: {place.seconds:.1f} s", flush=True)
        for name in names:
            scenario, share = scenarios[name]
            results.append(play(place, name, scenario, -int(-options.kills * share // whole)))
    print(table(results))
    return 1 if any(result.lost or result.twice or result.broken for result in results) else 0


def play(place: Lab, name: str, scenario: Scenario, kills: int) -> Result:
    """One scenario; whatever goes wrong in it is in its row."""
    result, start = Result(name), time.monotonic()
    try:
        scenario(place, result, kills)
    except LawBrokenError as error:
        result.broken.append(str(error))
    finally:
        place.sweep()
    print(f"{_line(result)}  {time.monotonic() - start:.0f} s", flush=True)
    for law in result.broken:
        print(f"  BROKEN: {law}", flush=True)
    return result


def table(results: list[Result]) -> str:
    """The table that ends it."""
    whole = Result("all")
    for result in results:
        for name in ("kills", "lost", "twice", "again", "begun"):
            setattr(whole, name, getattr(whole, name) + getattr(result, name))
        whole.broken += result.broken
    head = f"\n{'scenario':<16}{'kills':>6}{'rows lost':>11}{'rows twice':>12}{'laws broken':>13}  work repeated"
    return "\n".join([head, *map(_line, [*results, whole])])


def _line(result: Result) -> str:
    work = f"{result.again} of {result.begun}" if not result.skipped else f"skipped: {result.skipped}"
    note = f" ({result.note})" if result.note else ""
    return (
        f"{result.name:<16}{result.kills:>6}{result.lost:>11}{result.twice:>12}{len(result.broken):>13}  {work}{note}"
    )


if __name__ == "__main__":
    sys.exit(main())
