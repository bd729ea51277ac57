"""The job bundle: by its schema, and against what it names: the wheel, the configuration, its own variables."""

import copy
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from configparser import ConfigParser
from email import message_from_bytes
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import jsonschema
import pytest
import yaml

from tessera.config import read_yaml
from tessera.settings import TARGETS, load_settings

ROOT = Path(__file__).parents[2]
JOBS = ROOT / "jobs"
SCHEMA = json.loads(Path(__file__).with_name("bundle.schema.json").read_text(encoding="utf-8"))
REFERENCE = re.compile(r"\$\{([A-Za-z0-9_.-]+)\}")
WORKSPACE = {"workspace.current_user.short_name": "ann", "workspace.current_user.userName": "ann@example.org"}


def read_bundle() -> dict[str, Any]:
    """databricks.yml and the resource files that it includes, as one mapping."""
    merged = yaml.safe_load((JOBS / "databricks.yml").read_text(encoding="utf-8"))
    files = [file for pattern in merged["include"] for file in sorted(JOBS.glob(pattern))]
    for file in files:
        resources = yaml.safe_load(file.read_text(encoding="utf-8"))["resources"]
        merged.setdefault("resources", {}).update(resources)
    return merged


def resolved_job(target: str) -> dict[str, Any]:
    """The job as a target deploys it: every reference replaced, the bundle's variables by the target's values."""
    bundle = read_bundle()
    known = {f"var.{name}": about.get("default") for name, about in bundle["variables"].items()}
    known |= {f"var.{name}": value for name, value in bundle["targets"][target].get("variables", {}).items()}
    known |= {"bundle.name": bundle["bundle"]["name"], "bundle.target": target, **WORKSPACE}
    return replace(bundle["resources"]["jobs"]["line"], known=known)


def replace(value: Any, *, known: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        return {key: replace(item, known=known) for key, item in value.items()}
    if isinstance(value, list):
        return [replace(item, known=known) for item in value]
    if isinstance(value, str):
        if whole := REFERENCE.fullmatch(value):
            return replace(known[whole[1]], known=known)
        return REFERENCE.sub(lambda match: str(replace(known[match[1]], known=known)), value)
    return value


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel, built by the command of the bundle's own artifact from a copy of the tree, without an index."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "conf", tree / "conf")
    shutil.copytree(ROOT / "pipelines" / "tessera", tree / "pipelines" / "tessera")
    command = read_bundle()["artifacts"]["tessera"]["build"].replace("python3", sys.executable)
    subprocess.run(
        command.replace("--no-deps", "--no-deps --no-build-isolation"),
        shell=True, cwd=tree, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    [file] = (tree / "dist").glob("tessera-*.whl")
    with zipfile.ZipFile(file) as opened:
        yield opened


def member(wheel: zipfile.ZipFile, suffix: str) -> bytes:
    [name] = [name for name in wheel.namelist() if name.endswith(suffix)]
    return wheel.read(name)


def test_the_bundle_fits_its_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(read_bundle(), SCHEMA)


FAULTS = {
    "unknown task key": lambda job: job["tasks"][0].update(retries=3),
    "both kinds of parameters": lambda job: job["tasks"][0]["python_wheel_task"].update(named_parameters={}),
    "a wheel task without entry point": lambda job: job["tasks"][0]["python_wheel_task"].pop("entry_point"),
    "a number for a word": lambda job: job["job_clusters"][1]["new_cluster"]["spark_conf"].update(a=1),
    "pause status": lambda job: job["schedule"].update(pause_status="paused"),
    "no time zone": lambda job: job["schedule"].pop("timezone_id"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_the_schema_refuses_a_fault(fault):
    bundle = copy.deepcopy(read_bundle())
    fault(bundle["resources"]["jobs"]["line"])

    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(bundle, SCHEMA)


def test_every_target_has_an_overlay_of_its_name_and_dev_is_the_default():
    targets = read_bundle()["targets"]

    assert set(targets) == set(TARGETS) - {"local"}
    assert all((ROOT / "conf" / f"{target}.yaml").is_file() for target in targets)
    assert [name for name, about in targets.items() if about.get("default")] == ["dev"]
    assert {name: about["mode"] for name, about in targets.items()} == {
        "dev": "development", "staging": "production", "prod": "production",
    }  # fmt: skip


@pytest.mark.parametrize("target", ["dev", "staging", "prod"])
def test_what_a_target_deploys_has_no_open_reference(target):
    job = resolved_job(target)

    assert "${" not in json.dumps(job)
    assert job["schedule"]["pause_status"] == ("UNPAUSED" if target == "prod" else "PAUSED")
    assert job["max_concurrent_runs"] == 1


@pytest.mark.parametrize("target", ["dev", "staging", "prod"])
def test_bundle_and_configuration_name_the_same_places(target):
    job, settings = resolved_job(target), load_settings(target)
    clusters = {cluster["job_cluster_key"]: cluster["new_cluster"] for cluster in job["job_clusters"]}
    homes = {cluster["spark_env_vars"]["TESSERA_HOME"] for cluster in clusters.values()}

    assert len(homes) == 1
    catalog, schema, volume = homes.pop().removeprefix("/Volumes/").split("/")[:3]
    assert volume
    assert settings.serve.model_name.startswith(f"{catalog}.{schema}.")
    assert all(source.table.startswith(f"{catalog}.{schema}.") for source in settings.prepare.sources)
    assert clusters["gpus"]["num_workers"] == settings.train.ranks
    assert settings.train.placement == "cluster"


def test_the_tasks_are_the_rooms_in_order():
    tasks = resolved_job("prod")["tasks"]
    names = [task["task_key"] for task in tasks]

    assert names == ["prepare", "shard", "train", "evaluate", "serve", "explore"]
    assert [[on["task_key"] for on in task.get("depends_on", [])] for task in tasks] == [
        [], *[[name] for name in names[:-1]],
    ]  # fmt: skip
    assert {task["job_cluster_key"] for task in tasks} == {"tables", "gpus"}
    assert sum(task["timeout_seconds"] for task in tasks) <= 2 * resolved_job("prod")["timeout_seconds"]


def test_every_entry_point_is_in_the_wheel_and_its_function_in_the_package(wheel):
    from tessera import jobs

    scripts = ConfigParser()
    scripts.optionxform = str  # type: ignore[assignment]
    scripts.read_string(member(wheel, "entry_points.txt").decode())
    known = dict(scripts["console_scripts"])

    for task in resolved_job("prod")["tasks"]:
        module, _, function = known[task["python_wheel_task"]["entry_point"]].partition(":")
        assert module == "tessera.jobs"
        assert callable(getattr(jobs, function))
        assert task["python_wheel_task"]["package_name"] == "tessera"
    assert known["tessera-line"] == "tessera.jobs:line"


def test_the_wheel_carries_every_overlay(wheel):
    for target in ("base", *TARGETS):
        assert member(wheel, f"share/tessera/conf/{target}.yaml") == (ROOT / "conf" / f"{target}.yaml").read_bytes()


def test_the_clusters_install_what_the_extras_ask_for(wheel):
    metadata = message_from_bytes(member(wheel, ".dist-info/METADATA"))
    lines = [line.partition(";") for line in metadata.get_all("Requires-Dist")]
    extra = {asked.strip() for asked, _, when in lines if re.search(r"extra == ['\"](serve|explore)['\"]", when)}
    text = (JOBS / "requirements.txt").read_text(encoding="utf-8")

    found = {line for line in text.splitlines() if not line.startswith("#")}

    assert {normal(line) for line in found} == {normal(line) for line in extra}
    assert not any(line.startswith("pyspark") for line in found)


def normal(requirement: str) -> tuple[str, frozenset[str]]:
    name, bounds = re.fullmatch(r"([A-Za-z0-9_-]+)\s*(.*)", requirement).groups()
    return name, frozenset(bounds.replace(" ", "").split(","))


@pytest.mark.parametrize("target", ["dev", "staging", "prod"])
def test_the_parameters_are_options_and_known_keys(target):
    """As the platform passes them: job parameters replaced, then read by our own command line and configuration."""
    job = resolved_job(target)
    defaults = {parameter["name"]: parameter["default"] for parameter in job["parameters"]}
    for task in job["tasks"]:
        given = [
            re.sub(r"\{\{job\.parameters\.(\w+)\}\}", lambda match: defaults[match[1]], parameter)
            for parameter in task["python_wheel_task"]["parameters"]
        ]
        options = dict(item.split("=", 1) for item in given if not item.startswith("--set="))
        assignments = [item.removeprefix("--set=") for item in given if item.startswith("--set=")]

        assert options == {"--target": target}
        settings = load_settings(target, assignments=assignments)
        assert settings.tracking.experiment.startswith("/")
        assert settings.identity() == load_settings(target).identity(), "the bundle would change an output"


def test_paths_of_the_job_are_relative_to_its_file():
    folder = JOBS / "resources"
    for task in resolved_job("prod")["tasks"]:
        places = {key: (folder / value).resolve() for library in task["libraries"] for key, value in library.items()}
        assert places["requirements"] == JOBS / "requirements.txt"
        assert places["whl"].parent == ROOT / "dist"


def test_the_schedule_is_nightly():
    schedule = resolved_job("prod")["schedule"]

    fields = quartz(schedule["quartz_cron_expression"])

    assert (fields["day_of_month"], fields["month"], fields["day_of_week"]) == ("*", "*", "?")
    assert 0 <= int(fields["hours"]) < 6
    assert ZoneInfo(schedule["timezone_id"])


@pytest.mark.parametrize("expression", ["30 2 * * *", "0 30 2 * * *", "0 60 2 * * ?", "0 30 24 * * ?", "0 x 2 * * ?"])
def test_what_is_no_quartz_expression_is_refused(expression):
    with pytest.raises(AssertionError):
        quartz(expression)


QUARTZ = {
    "seconds": (0, 59), "minutes": (0, 59), "hours": (0, 23), "day_of_month": (1, 31), "month": (1, 12),
    "day_of_week": (1, 7),
}  # fmt: skip


def quartz(expression: str) -> dict[str, str]:
    """The six fields of a Quartz expression of numbers, `*` and `?`; of the two days exactly one is `?`."""
    values = expression.split()
    assert len(values) == len(QUARTZ), "Quartz begins with seconds and has six fields"
    fields = dict(zip(QUARTZ, values, strict=True))
    assert [fields["day_of_month"], fields["day_of_week"]].count("?") == 1
    for name, value in fields.items():
        low, high = QUARTZ[name]
        assert value in ("*", "?") or (value.isdecimal() and low <= int(value) <= high), f"{name}: {value}"
    return fields


def test_the_bundle_is_strict_yaml():
    """No key twice, which YAML readers otherwise pass over."""
    for file in (JOBS / "databricks.yml", *(JOBS / "resources").glob("*.yml")):
        read_yaml(file)
