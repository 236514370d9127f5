"""docs/evidence-plan.md: its commands are taken, its configs hold what it says, and its numbers of pairs are right."""

import re
import shlex
from pathlib import Path

import pytest

from pc_ewa.cli.compare import create_parser
from pc_ewa.compare import Plan, load_plan
from pc_ewa.compare.power import LEVEL, pairs_needed, power
from pc_ewa.config import load_experiment

REPOSITORY = Path(__file__).parent.parent.parent
PAGE = (REPOSITORY / "docs" / "evidence-plan.md").read_text()
(SHELL,) = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
VARIABLES = dict(re.findall(r'(SMALL|SAVE|L)="?([^";\n]*)"?', SHELL))
PLANNED = ["ewa", "ewa_constant", "naive_ewa", "naive_early"]


def _commands(name: str) -> list[list[str]]:
    text = re.sub(r"\$(\w+)", lambda found: VARIABLES.get(found[1], found[0]), SHELL)
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    lines = [words[words.index("pc-ewa") :] for words in lines if "pc-ewa" in words]
    return [words[2:] for words in lines if words[1] == name]


def _plan(name: str, overrides: list[str]) -> Plan:
    return load_plan(Path("configs") / f"{name}.yaml", overrides)


def test_the_commands_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr("pc_ewa.compare.plan._check_experiments", lambda plan: None)  # test_plan.py has them checked
    comparisons = _commands("compare")
    assert len(comparisons) >= 8
    for words in comparisons:
        options = create_parser().parse_intermixed_args(words)
        plan = _plan(options.what[0], options.what[1:])
        assert set(filter(None, (options.only or "").split(","))) <= plan.variants.keys()
        if not options.check:
            assert options.save.startswith("docs/results")
            assert (options.jobs, options.no_costs) == (1, True)
    (words,) = _commands("train")
    experiment = load_experiment(Path("configs") / f"{words[0]}.yaml", words[1:])
    start = f"{experiment.output}/checkpoints/merged_last.pt"
    for name in ("modelnet40_small_data_finetune", "modelnet40_finetune_long"):
        assert f"init_from={start}" in _plan(f"compare/{name}", []).comparison.changes


@pytest.mark.parametrize("name", ["modelnet40_small_data", "modelnet40_small_data_finetune", "furniture_folds"])
def test_the_configs_hold_the_planned_comparisons(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr("pc_ewa.compare.plan._check_experiments", lambda plan: None)
    plan = _plan(f"compare/{name}", [])
    assert plan.comparison.comparisons == PLANNED
    assert [plan.variants[variant].against for variant in PLANNED] == [None, None, "naive", "naive"]
    assert plan.sweep is not None
    assert plan.sweep.extend == 3
    (row,) = (line for line in PAGE.splitlines() if f"`compare/{name}`" in line and line.startswith("|"))
    pairs = int(row.split("|")[4])
    assert pairs == len(plan.seeds) * (plan.comparison.folds or 1)


def test_the_pairs_are_those_that_the_deviations_ask_for() -> None:
    rows = re.findall(r"\| [\d.]+, ([\d.]+), [\d.]+ \| (\d+) \((\d+)\) \|", PAGE)
    assert len(rows) == 5
    for deviation, plain, strict in rows:
        assert pairs_needed(0.5, float(deviation)) == int(plain)
        assert pairs_needed(0.5, float(deviation), LEVEL / len(PLANNED)) == int(strict)
    seen = re.findall(r"\| (\d+) \| ([\d.]+) points at ([\d.]+) \|", PAGE)
    assert len(seen) == 5
    for pairs, effect, deviation in seen:
        assert power(float(effect), float(deviation), int(pairs)) == pytest.approx(0.8, abs=0.03)
