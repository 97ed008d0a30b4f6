"""The deployment files use options, metrics and a health-check path that exist."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from justright.cli.app import app
from justright.serve.metrics import Metrics
from justright.serve.scheduler import Snapshot

DEPLOY = Path(__file__).parent.parent / "deploy"
NOTHING = Snapshot(0, 0, 1, 0, 0, None, 0, True, False)


def test_grafana_uses_existing_metrics() -> None:
    page = Metrics(lambda: NOTHING).render().decode()
    there = {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")}
    dashboard = json.loads((DEPLOY / "grafana/dashboards/justright.json").read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"justright_\w+", target["expr"])
    }
    assert asked
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked} <= there


def test_the_page_uses_existing_metrics() -> None:
    page = Metrics(lambda: NOTHING).render().decode()
    there = {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")}
    script = (DEPLOY.parent / "src/justright/serve/dashboard/page.js").read_text()
    asked = set(re.findall(r'"(justright_\w+)"', script))
    assert asked
    assert {re.sub(r"_count$", "", name) for name in asked} <= there


def options_in(words: list[str]) -> set[str]:
    return {word for word in words if word.startswith("--")}


def commands() -> dict[str, list[str]]:
    unit = (DEPLOY / "justright.service").read_text()
    docker = re.search(r"^CMD (\[.*\])$", (DEPLOY / "Dockerfile").read_text(), re.M)
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    start = re.search(r"^ExecStart=(.*)$", unit, re.M)
    assert docker
    assert start
    return {
        "Dockerfile": json.loads(docker[1]),
        "compose": compose["services"]["justright"]["command"],
        "systemd": shlex.split(start[1])[2:],
        "Ray Serve": shlex.split(_ray_command()),
    }


def _ray_command() -> str:
    """The command that docs/scale.md starts."""
    ray = (DEPLOY / "ray_serve.py").read_text()
    assert '"-m", "justright", "serve", *options, "--port"' in ray
    start = re.search(r'^JUSTRIGHT_SERVE="(.*?)"', (DEPLOY.parent / "docs/scale.md").read_text(), re.M)
    assert start
    return f"serve {start[1]}"


@pytest.mark.parametrize("name", ["Dockerfile", "compose", "systemd"])
def test_the_command_has_the_options_of_serve(name: str) -> None:
    serve = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    known = {option for parameter in serve.params for option in parameter.opts}
    assert options_in(commands()[name]) <= known


def test_everything_is_yaml_and_the_parts_find_each_other() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    prometheus = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    assert prometheus["scrape_configs"][0]["static_configs"][0]["targets"] == ["justright:8000"]
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    assert {"justright", "prometheus", "grafana"} == set(compose["services"])
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            local = volume.split(":")[0]
            if local.startswith("./") and "MODELS" not in volume:
                assert (DEPLOY / local).exists(), local
