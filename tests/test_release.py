"""What a release is made of agrees: one version, the Pythons that are tried, scripts that workflows run, links."""

import json
import re
import subprocess
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from pc_ewa import package

REPOSITORY = Path(__file__).parent.parent
GITHUB = REPOSITORY / ".github"
PAGES = ["CHANGELOG.md", "CODE_OF_CONDUCT.md", "SECURITY.md", "CONTRIBUTING.md"]
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}  # of Keep a Changelog


def steps(workflow: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(workflow.read_text())["jobs"].values()
    return [step for job in jobs for step in job["steps"]]


def test_the_version_is_that_of_pyproject_everywhere() -> None:
    assert yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())["version"] == package.version()
    releases = re.findall(r"^## \[(\d.*?)\]", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert releases[0] == package.version()


def test_the_changelog_keeps_its_form() -> None:
    text = (REPOSITORY / "CHANGELOG.md").read_text()
    first, *releases = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert first == "[Unreleased]"
    days = [date.fromisoformat(re.fullmatch(r"\[\d+\.\d+\.\d+\] - (.*)", release)[1]) for release in releases]
    assert all(later >= earlier for later, earlier in pairwise(days))
    assert {*re.findall(r"^### (.*)$", text, re.MULTILINE)} <= KINDS


def test_the_pythons_that_are_named_are_those_that_are_tried() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text()
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text)
    assert re.search(r'^requires-python = ">=(.*)"$', text, re.MULTILINE)[1] == named[0]
    matrix = yaml.safe_load((GITHUB / "workflows" / "tests.yml").read_text())["jobs"]["tests"]["strategy"]["matrix"]
    assert matrix["python"] == named


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_scripts_that_are_here(workflow: Path) -> None:
    content = yaml.safe_load(workflow.read_text())
    assert content["permissions"] == {"contents": "read"}
    assert all("timeout-minutes" in job for job in content["jobs"].values())
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in steps(workflow) if "uses" in step)
    commands = [step["run"] for step in steps(workflow) if "run" in step and "apt-get" not in step["run"]]
    assert commands
    for command in commands:
        script = re.fullmatch(r"bash (\S+)", command)[1]
        assert (REPOSITORY / script).is_file(), command


def test_forms_for_issues_ask_for_what_helps() -> None:
    forms = {path.stem: yaml.safe_load(path.read_text()) for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml")}
    forms.pop("config")
    for form in forms.values():
        assert {"name", "description", "body"} <= form.keys()
        assert len({field["id"] for field in form["body"]}) == len(form["body"])
    assert "pc-ewa info" in str(forms["bug"])


def test_the_image_is_given_all_that_a_wheel_is_built_from() -> None:
    kept = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert all([*REPOSITORY.glob(pattern)] for pattern in kept)
    assert {"pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "pc_ewa", "configs", "models"} <= kept
    extra = re.search(r"^ARG EXTRAS=(\w+)$", (REPOSITORY / "Dockerfile").read_text(), re.MULTILINE)[1]
    assert re.search(rf"^{extra} = \[", (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)


def test_the_container_of_editors_calls_what_the_test_command_calls() -> None:
    container = json.loads((REPOSITORY / ".devcontainer" / "devcontainer.json").read_text())
    setup = re.search(r"source tools/setup.sh && (setup [\w .-]+)", container["postCreateCommand"])[1]
    assert f"\n{setup}\n" in (REPOSITORY / "tools" / "run_tests.sh").read_text()


@pytest.mark.parametrize("script", ["build_wheels.sh"])
def test_scripts_explain_themselves(script: str) -> None:
    done = subprocess.run(["bash", f"tools/{script}", "--help"], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"bash tools/{script}")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)#]+)", (REPOSITORY / page).read_text()):
        assert "://" in link or (REPOSITORY / link).exists(), link
