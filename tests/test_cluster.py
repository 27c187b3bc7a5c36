"""The launch files of examples/cluster: their syntax, and that of the commands in them."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from flatsearch.cli import make_parser

FOLDER = Path(__file__).parent.parent / "examples" / "cluster"


def check(words: list[str]) -> None:
    """Refuse a command line that flatsearch would refuse."""
    assert words[0] == "flatsearch"
    _, unknown = make_parser()[0].parse_known_args(words[1:])
    assert not unknown


def containers(document: Any) -> list[Any]:
    template = document.get("spec", {}).get("template", {})
    return template.get("spec", {}).get("containers", [])


def test_slurm() -> None:
    script = FOLDER / "slurm.sh"
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    (end,) = re.findall(r'exec (flatsearch "\$@" .*)', text)
    commands = re.findall(r"set -- (.*)", text)
    assert [command.split()[0] for command in commands] == ["run", "worker"]
    for command in commands:
        check(shlex.split(end.replace('"$@"', command)))
    refused = subprocess.run(["/bin/bash", script], env={}, capture_output=True, check=False)
    assert b"FLATSEARCH_STORAGE: is the storage" in refused.stderr


def test_compose() -> None:
    services = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    for name in ("search", "worker"):
        check(shlex.split(services[name]["command"]))
        assert services[name]["environment"]["FLATSEARCH_STORAGE"].startswith("postgresql://")
    assert services["database"]["healthcheck"]


def test_kubernetes() -> None:
    documents = list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text()))
    assert [d["kind"] for d in documents].count("Job") == 2
    claims = {d["metadata"]["name"] for d in documents if d["kind"] == "PersistentVolumeClaim"}
    for document in documents:
        for container in containers(document):
            if "args" in container:
                check(container["args"])
                assert container["env"][-1]["name"] == "FLATSEARCH_STORAGE"
                assert "$(PASSWORD)" in container["env"][-1]["value"]
            volumes = document["spec"]["template"]["spec"]["volumes"]
            assert {v["persistentVolumeClaim"]["claimName"] for v in volumes} <= claims


@pytest.mark.parametrize("file", sorted(FOLDER.iterdir()), ids=lambda file: file.name)
def test_no_password_is_written_down(file: Path) -> None:
    for password in re.findall(r"://[^\s:/]+:([^@\s]+)@", file.read_text()):
        assert password == "PASSWORD" or password.startswith("$")
