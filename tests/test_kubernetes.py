"""Laws: every file for Kubernetes has only fields that exist, with values of their types, by the schemas of Kubernetes
and of KubeRay; and the commands in them are commands of ours.
"""

from __future__ import annotations

import json
import re
import shlex
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from jobs import encode

kubernetes_validate = pytest.importorskip("kubernetes_validate")

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples/kubernetes"
FILES = sorted(FOLDER.glob("*.yaml"))
SCHEMAS: dict[str, Any] = json.loads((ROOT / "tests/schemas/kuberay-1.7.0.json").read_text())

KUBERNETES = "1.33"


def check(manifest: dict[str, Any]) -> None:
    """Raise if a manifest has an unknown field, lacks one, or has a value of a wrong type."""
    if not manifest["apiVersion"].startswith("ray.io/"):
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
        return
    job = manifest["spec"]
    if manifest["kind"] == "RayCronJob":
        jsonschema.validate(job, closed("RayCronJob"))
        job = job["jobTemplate"]
    jsonschema.validate(job, closed("RayJob"))
    cluster = job["rayClusterSpec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": group["template"]["spec"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def closed(kind: str) -> dict[str, Any]:
    """The schema of a kind, refusing fields that it does not name, as `kubectl apply --validate=strict` does."""

    def close(schema: Any) -> Any:
        if isinstance(schema, list):
            return [close(one) for one in schema]
        if not isinstance(schema, dict):
            return schema
        made = {name: close(value) for name, value in schema.items()}
        return made | ({"additionalProperties": False} if isinstance(schema.get("properties"), dict) else {})

    found: dict[str, Any] = close(SCHEMAS[kind])
    return found


def manifests(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def commands(manifest: Any) -> list[list[str]]:
    """Every command line in a manifest."""
    if isinstance(manifest, list):
        return [found for one in manifest for found in commands(one)]
    if not isinstance(manifest, dict):
        return []
    found = [shlex.split(manifest["entrypoint"])] if "entrypoint" in manifest else []
    found += [[*manifest["command"], *manifest.get("args", [])]] if "command" in manifest else []
    return found + [line for value in manifest.values() for line in commands(value)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_manifest_fits_its_schema(path: Path) -> None:
    for manifest in manifests(path):
        check(manifest)


@pytest.mark.parametrize("path", [path for path in FILES if path.stem != "access"], ids=lambda path: path.stem)
def test_the_commands_in_it_are_ours(path: Path) -> None:
    lines = [line for manifest in manifests(path) for line in commands(manifest)]
    assert lines
    for program, name, *options in lines:
        assert (program, name) == ("latentmill", "encode")
        job = encode.parse(options)
        assert job.output == "s3://latents/v1"
        grace = re.search(r"terminationGracePeriodSeconds: (\d+)", path.read_text())
        assert grace
        assert int(grace[1]) > job.grace


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("rayjob", ("spec", "backofLimit"), 3),
        ("rayjob", ("spec", "ttlSecondsAfterFinished"), "10m"),
        ("rayjob", ("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        ("rayjob", ("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "serviceAcountName"), "x"),
        ("raycronjob", ("spec", "concurrencyPolicy"), "Forbid"),
        ("cronjob", ("spec", "jobTemplate", "spec", "template", "spec", "restartPolice"), "Never"),
        ("cronjob", ("spec", "concurrencyPolicy"), 1),
    ],
)
def test_a_slip_is_found(name: str, place: tuple[str, ...], value: object) -> None:
    (manifest,) = manifests(FOLDER / f"{name}.yaml")
    broken = deepcopy(manifest)
    inner = broken
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(broken)


def test_both_files_for_kuberay_run_the_same_job() -> None:
    (job,), (nightly,) = manifests(FOLDER / "rayjob.yaml"), manifests(FOLDER / "raycronjob.yaml")
    assert commands(job) == commands(nightly)


def test_the_image_has_what_the_manifests_run() -> None:
    text = (FOLDER / "Dockerfile").read_text()
    for copied in re.findall(r"^COPY (\S+)", text, re.M):
        assert (ROOT / copied).exists()
    extras = re.search(r"latentmill-\*\.whl\)\[([\w,]+)\]", text)
    assert extras
    assert "cluster" in extras[1].split(",")  # KubeRay starts Ray by its command
    pinned = re.search(r"^ray==(\S+)", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned
    assert f'rayVersion: "{pinned[1]}"' in (FOLDER / "rayjob.yaml").read_text()
