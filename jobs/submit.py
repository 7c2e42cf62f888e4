"""latentmill submit [OPTIONS] -- ENCODE_OPTIONS: run `latentmill encode` as a job on a Ray cluster, and follow it.

The code of this installation goes with the job, so the cluster needs its dependencies only. The log is followed. A job
that ends with 75, that is killed, or whose head node is lost and comes back, is submitted again: it resumes. The exit
code is that of the last job. Ctrl-C ends the following, not the job.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import aiohttp
import tyro

from jobs import encode
from jobs.process import run_command
from pipeline.errors import ConfigError
from pipeline.output.wording import printable
from pipeline.runs.stop import STATUS
from pipeline.runs.summary import CONFIG, LEFT

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

PACKAGES = ("latentmill", "vae", "pipeline", "jobs")
AGAIN = frozenset({STATUS["SIGTERM"], None, -signal.SIGTERM, -signal.SIGKILL, 128 + signal.SIGKILL})
"""Exit codes of jobs that are submitted again. None: Ray knows no code, because the head or the job's node was lost."""
LOOK_SECONDS = 2.0

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Submit:
    """Options of `latentmill submit`; those of `latentmill encode` follow after `--`."""

    address: str = "http://127.0.0.1:8265"
    """Of the dashboard of the cluster. A cluster that demands a token finds it in RAY_AUTH_TOKEN or ~/.ray/auth_token,
    if RAY_AUTH_MODE=token is set."""
    attempts: int = 20
    """Jobs to submit at most."""
    patience: float = 600.0
    """Seconds to wait for a head node that does not answer any more."""
    python: str = "python"
    """The Python of the cluster."""

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ConfigError(f"--attempts must be at least 1, got {self.attempts}")
        if self.patience < 0:
            raise ConfigError(f"--patience must be at least 0 seconds, got {self.patience:g}")


class _SignalError(Exception):
    """A signal ends the following."""


def main(argv: Sequence[str] | None = None) -> int:
    """Submit, follow, and submit again while that helps."""
    ours, options = _split(list(sys.argv[1:] if argv is None else argv))
    args = tyro.cli(Submit, args=ours, prog="latentmill submit", description=__doc__)
    job = ""
    try:
        _check(options)
        client = _connect(args.address)
        for name in STATUS:
            signal.signal(signal.Signals[name], _interrupt)
        for _ in range(args.attempts):
            job = _submit(client, args, options)
            print(f"job {job} on {args.address}", flush=True)
            code, again = _follow(client, job, args.patience)
            print(f"job {job} ended {f'with {code}' if code is not None else 'without an exit code'}", flush=True)
            if not again:
                break
    except _SignalError as stopped:
        print(f"job {job} goes on; stop it with: ray job stop --address {args.address} {job}", file=sys.stderr)
        return STATUS[str(stopped)]
    except ConfigError as error:
        print(printable(f"latentmill submit: {error}"), file=sys.stderr)
        return CONFIG
    return LEFT if code is None else code


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return what stands before the first `--`, and what stands after it."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]


def _check(options: list[str]) -> None:
    """Parse the options of encode here, where a mistake costs nothing. Raises SystemExit as its command line does."""
    if encode.parse(options).workers.ray_address != "local":
        raise ConfigError("--ray-address cannot be given: --address names the cluster")


def _connect(address: str) -> JobSubmissionClient:
    try:
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise ConfigError(f"{error}: install the extra `cluster`") from error
    logging.getLogger("ray").setLevel(logging.WARNING)  # it tells of each upload
    try:
        return JobSubmissionClient(address)
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise ConfigError(f"--address {address}: {first_line}") from None


def _submit(client: JobSubmissionClient, args: Submit, options: list[str]) -> str:
    command = [args.python, "-m", "jobs.encode", *options, "--ray-address", "auto"]
    job: str = _patiently(
        lambda: client.submit_job(entrypoint=shlex.join(command), runtime_env={"py_modules": _packages()}),
        args.patience,
    )
    return job


def _packages() -> list[str]:
    """Return the folders of our packages. Ray ships each under a name that follows from its content.

    A wheel would be shipped under its file name, so changed code of the same version would not arrive (Ray 2.60,
    `packaging.get_uri_for_package`), and pip would install torch again beside it.
    """
    specs = [importlib.util.find_spec(name) for name in PACKAGES]
    return [str(Path(spec.origin).parent) for spec in specs if spec and spec.origin]


def _follow(client: JobSubmissionClient, job: str, patience: float) -> tuple[int | None, bool]:
    """Print the log of a job until it ends. Return its exit code (None if it was lost), and whether to submit it again.

    A job that somebody stopped with `ray job stop` is not submitted again.
    """
    shown = 0
    while True:
        shown = asyncio.run(_tail(client, job, shown))
        info = _patiently(lambda: _info(client, job), patience)
        if info is None:  # another head, which does not know the job
            return None, True
        match info:
            case "SUCCEEDED", _:
                return 0, False
            case "STOPPED", _:
                return STATUS["SIGTERM"], False
            case "FAILED", code:
                return code, code in AGAIN
        time.sleep(LOOK_SECONDS)


async def _tail(client: JobSubmissionClient, job: str, shown: int) -> int:
    """Print the log from character `shown` on, until it ends or the head is lost. Return how much was printed."""
    seen = 0
    try:
        async for text in client.tail_job_logs(job):
            new = text[max(shown - seen, 0) :]
            seen += len(text)
            print(new, end="", flush=True)
    except (
        RuntimeError,
        OSError,
        aiohttp.ClientError,
    ):  # the head does not answer: its job is looked for when it is back
        pass
    return max(seen, shown)


def _info(client: JobSubmissionClient, job: str) -> tuple[str, int | None] | None:
    """Return the status and the exit code of a job; None if the head does not know it."""
    try:
        info = client.get_job_info(job)
    except RuntimeError as error:
        if "404" in str(error):
            return None
        raise
    return str(info.status), info.driver_exit_code


def _patiently(call: Callable[[], T], patience: float) -> T:
    """Call until the head answers.

    Raises:
        ConfigError: it did not for `patience` seconds, or it refuses the request.
    """
    until = time.monotonic() + patience
    while True:
        try:
            return call()
        except (OSError, RuntimeError) as error:  # requests raises OSErrors
            first_line = str(error).strip().partition("\n")[0]
            if "status code 4" in first_line:
                raise ConfigError(first_line) from None
            if time.monotonic() >= until:
                raise ConfigError(f"the head node does not answer for {patience:g} s: {first_line}") from None
            time.sleep(LOOK_SECONDS)


def _interrupt(number: int, _frame: object) -> None:
    raise _SignalError(signal.Signals(number).name)


if __name__ == "__main__":
    run_command(main)
