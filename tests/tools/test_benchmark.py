"""tools/benchmark.py: it runs; its figures are for a quiet machine to tell."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

Tool = Callable[..., Any]


def test_a_step_is_timed_with_and_without_ewa(tool: Tool, toy_config: Path, tmp_path: Path) -> None:
    code, out, err = tool("benchmark", "step", toy_config, "--pairs", "2", f"output={tmp_path}/run")
    assert (code, err) == (0, "")
    assert "dense" in out
    assert "EWA" in out
    assert not (tmp_path / "run").exists()


def test_nothing_to_compare_is_one_line(tool: Tool, toy_config: Path) -> None:
    assert tool("benchmark", "step", toy_config, "ewa=null")[::2] == (
        2,
        f"error: {toy_config} has no ewa section to compare; add ewa.num_experts=4\n",
    )
    assert tool("benchmark", "step", toy_config, "--pairs=0").err == "error: --pairs 0; time at least one\n"
