"""Law: tests -> jobs -> pipeline -> {vae, latentmill}, never upward; Ray and PyAV in few places only."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FORBIDDEN = {
    "latentmill": {"vae", "pipeline", "jobs", "tests", "ray", "av"},
    "vae": {"latentmill", "pipeline", "jobs", "tests", "ray", "av"},
    "pipeline": {"jobs", "tests"},
    "jobs": {"tests"},
}


def imports(path: Path) -> set[str]:
    """Top-level names that a module imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_go_downwards(package: str) -> None:
    found = {str(path.relative_to(ROOT)): imports(path) & FORBIDDEN[package] for path in modules(package)}
    assert {path: names for path, names in found.items() if names} == {}


FLOORS = (
    {"records", "errors"},
    {"receipts"},
    {"shards", "decode", "storage", "guard"},
    {"settings", "sources"},
    {"output"},
    {"plan"},
    {"stages", "runs"},
    {"control"},
    {"text"},
    {"run", "verify", "estimate", "export"},
)
"""The rooms of `pipeline/`, lowest floor first. A room imports from itself and from lower floors."""

ROOT_NAMES = {
    *(".ci", ".git", ".github", ".gitignore", ".pre-commit-config.yaml"),
    *("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "SECURITY.md"),
    *("constraints.txt", "docs", "examples", "jobs", "latentmill", "pipeline", "pyproject.toml", "tests", "vae"),
}
"""All that may stand in the root of the repository."""

MOST_ROOMS = 20
MOST_LINES = 300


def test_rooms_import_from_lower_floors() -> None:
    floor_of = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
    upward = []
    for path in modules("pipeline"):
        room = path.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py")
        for module in pipeline_modules(path):
            other = module.split(".")[1]
            if room not in ("__init__", other) and floor_of[other] >= floor_of[room]:
                upward.append(f"{path.relative_to(ROOT)} imports {module}")
    assert upward == []


def test_every_room_is_on_a_floor_and_a_visitor_sees_few() -> None:
    seen = {path.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py") for path in modules("pipeline")}
    assert seen - {"__init__"} == set().union(*FLOORS)
    for package in FORBIDDEN:
        assert len({path.relative_to(ROOT / package).parts[0] for path in modules(package)}) <= MOST_ROOMS, package


OUTPUT_PATHS = (
    *("text/", "data/", "index/", "rejected/", "plan/", "runs/"),
    *("_claims", "_staging", "index.parquet", "spec.json"),
)


def test_paths_of_an_output_are_spelled_in_one_module() -> None:
    spelled = []
    for path in [*modules("pipeline"), *modules("jobs")]:
        tree = ast.parse(path.read_text())
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            is_path = isinstance(node, ast.Constant) and str(node.value).startswith(OUTPUT_PATHS)
            if is_path and id(node) not in docs:
                spelled.append(path)
    store = ROOT / "pipeline/storage/store.py"  # where temporary files of a store go
    assert set(spelled) - {store} == {ROOT / "pipeline/output/layout.py"}


def test_no_file_is_long() -> None:
    packages = ("vae", "latentmill", "pipeline", "jobs")
    lengths = {path: len(path.read_text().splitlines()) for package in packages for path in modules(package)}
    assert {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n > MOST_LINES} == {}


MOST_PARAMETERS = 6


def test_the_graph_fits_a_screen_and_no_function_takes_many_parameters() -> None:
    assert len((ROOT / "pipeline/run.py").read_text().splitlines()) < 150
    many = []
    for path in [*modules("pipeline"), *modules("jobs")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names = {argument.arg for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]}
                if len(names - {"self", "cls"}) > MOST_PARAMETERS:
                    many.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert many == []


def test_the_root_holds_only_what_is_meant_to_be_there() -> None:
    git = ["git", "ls-tree", "--name-only", "HEAD"]
    done = subprocess.run(git, capture_output=True, text=True, cwd=ROOT, timeout=60)
    if done.returncode:
        pytest.skip("not a git checkout")
    assert set(done.stdout.splitlines()) - ROOT_NAMES == set()


def pipeline_modules(path: Path) -> set[str]:
    """The modules of `pipeline` that a module imports, by their full names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("pipeline.")}
        elif isinstance(node, ast.ImportFrom) and node.module == "pipeline":
            found |= {f"pipeline.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pipeline."):
            found.add(node.module)
    return found


def test_ray_stays_in_two_modules_and_av_in_decode() -> None:
    knows_ray = [path for path in modules("pipeline") if "ray" in imports(path)]
    control = ROOT / "pipeline/control"
    assert knows_ray == [*sorted(control.glob("ray_*.py")), ROOT / "pipeline/run.py"]
    knows_av = [path for path in modules("pipeline") if "av" in imports(path)]
    assert {path.relative_to(ROOT / "pipeline").parts[0] for path in knows_av} == {"decode"}


@pytest.mark.parametrize("module", ["pipeline.run", "pipeline.stages.decode_video", "pipeline.stages.read_shard"])
def test_workers_start_without_torch(module: str) -> None:
    """What a read or decode worker imports must not import torch: it costs seconds for each of them."""
    check = f"import sys, {module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT, timeout=100)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.slow
def test_the_wheel_holds_every_module(tmp_path: Path) -> None:
    """Built, and unpacked into an empty environment: each module's source is there, and compiles."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    if subprocess.run([*pip, "--version"], capture_output=True, timeout=100).returncode:
        pytest.skip("needs pip")
    build = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)]
    if subprocess.run([sys.executable, "-c", "import setuptools"], capture_output=True, timeout=100).returncode:
        build.remove("--no-build-isolation")
    subprocess.run(build, check=True, timeout=600)
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "site"
    subprocess.run(
        [*pip, "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)], check=True, timeout=600
    )
    for package in FORBIDDEN:
        for path in modules(package):
            installed = target / path.relative_to(ROOT)
            assert installed.read_text() == path.read_text()
            compile(installed.read_text(), str(installed), "exec")
        assert (target / package / "py.typed").exists()


def test_no_error_has_the_name_of_another() -> None:
    """What is caught by a name is all that is raised by it, whichever package raised it."""
    homes: dict[str, list[str]] = {}
    for package in FORBIDDEN:
        for path in modules(package):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef) and node.name.endswith("Error"):
                    homes.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}


def edges(package: str) -> dict[str, set[str]]:
    """The modules of a package, and which others of it each one imports: in functions and for types only, too."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in modules(package)}
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    found: dict[str, set[str]] = {}
    for name, path in names.items():
        asked: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                asked |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.module
                assert not node.level, f"{path}: relative import"
                parts = {f"{node.module}.{alias.name}" for alias in node.names}
                asked |= {part if part in names else node.module for part in parts}
        found[name] = (asked & set(names)) - {name}
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The nodes that lie on a circle, or lead from one to another."""
    left = {name: set(others) for name, others in graph.items()}
    while gone := {name for name in left if not left[name] or not any(name in others for others in left.values())}:
        left = {name: others - gone for name, others in left.items() if name not in gone}
    return sorted(left)


def test_circle_finds_circles_and_nothing_else() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set[str]()}
    assert circle(graph) == ["b", "c"]
    assert circle(graph | {"c": {"d"}}) == []


def test_no_file_of_the_reader_imports_itself_by_way_of_others() -> None:
    """A file can be read, and changed, with nothing above it in mind: what exists for type checkers counts, too."""
    assert circle(edges("latentmill")) == []


def test_reading_starts_without_torch_and_never_loads_the_pipeline() -> None:
    """What a training process imports: opening an output needs no torch, and nothing of the stream."""
    heavy = ["ray", "av", "vae", "pipeline", "jobs", "torch"]
    check = f"import sys, latentmill; latentmill.open; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT, timeout=100)
    assert done.stdout.strip() == "[]", done.stderr
