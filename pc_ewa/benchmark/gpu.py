"""A part of benchmarks/gpu.sh: python -m pc_ewa.benchmark.gpu PART OUT [--seconds N] [--rehearse]. See docs/gpu.md."""

import argparse
import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from pc_ewa.benchmark import gpu_steps, gpu_train, ops
from pc_ewa.benchmark.gpu_part import Part
from pc_ewa.benchmark.gpu_plan import REAL, REHEARSAL
from pc_ewa.benchmark.report import Table
from pc_ewa.bundled import checkout
from pc_ewa.errors import ConfigError, exit_on_error
from pc_ewa.train import compiled


def run_tests(part: Part) -> None:
    """Run the tests that need a GPU, and record pytest's report of each that fails."""
    root = checkout()
    if root is None:
        raise ConfigError("the tests are not part of an installed package; run this from a checkout")
    files = sorted(str(path) for path in (root / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text())
    absent = [name for name in ("pytest", "hypothesis") if importlib.util.find_spec(name) is None]
    if absent:
        raise ConfigError(f"the tests need {' and '.join(absent)}; pip install them, or leave this part out")
    what = ["--version"] if part.plan.rehearsal else ["-m", "gpu", "-rfEs", "-p", "no:cacheprovider", *files]
    # In a separate process: after a failed CUDA kernel the CUDA context of its process is unusable.
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *what],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=max(1, part.left),
        check=False,
    )
    said = (done.stdout + done.stderr).strip()
    print(said, flush=True)
    counts = dict(re.findall(r"(\d+) (passed|failed|skipped|errors?|deselected)", said.rpartition("\n")[2]))
    rows = [[kind, number] for number, kind in counts.items()] or [["none", "0"]]
    part.show([Table("Tests that need a GPU", ["", "tests"], rows)], exit_code=done.returncode, said=said[-8000:])
    if done.returncode:
        part.problem(f"pytest ended with exit code {done.returncode}")


def run_ops(part: Part) -> None:
    """Time the point-cloud ops beside plain torch, and beside pointnet2_ops if it is installed or can be compiled."""
    with _pointnet2(part):
        for section in part.plan.ops_sections:
            if part.left < 20 and not part.plan.rehearsal:
                part.problem(f"{section}: left out, no time")
                continue
            report = ops.measure(section, part.plan.ops_rounds, str(part.plan.device), part.plan.ops_plan)
            targets = [target.describe() for target in report.targets]
            found = part.numbers.get("targets", []) + targets
            part.show([*part.tables, *report.tables[section]], targets=found)


@contextlib.contextmanager
def _pointnet2(part: Part) -> Iterator[None]:
    """Compile pointnet2_ops from the source in POINTNET2, if that is set and nvcc is there, and make it importable."""
    source = os.environ.get("POINTNET2")
    if importlib.util.find_spec("pointnet2_ops") or not source:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        build, target = Path(folder) / "source", Path(folder) / "site"
        try:
            if not shutil.which("nvcc"):
                raise ConfigError("there is no nvcc")
            shutil.copytree(source, build)
            # Its setup.py sets TORCH_CUDA_ARCH_LIST to architectures that nvcc of CUDA 12 and later refuses.
            setup = build / "setup.py"
            lines = setup.read_text().splitlines()
            setup.write_text("\n".join(line for line in lines if "TORCH_CUDA_ARCH_LIST" not in line) + "\n")
            major, minor = torch.cuda.get_device_capability()
            pip = ["pip", "install", "--no-index", "--no-deps", "--no-build-isolation", "--target", str(target)]
            subprocess.run(
                [sys.executable, "-m", *pip, str(build)],
                env=os.environ | {"TORCH_CUDA_ARCH_LIST": f"{major}.{minor}"},
                timeout=min(120, part.left / 2),
                check=True,
            )
            sys.path.insert(0, str(target))
        except (OSError, subprocess.SubprocessError, ConfigError) as error:
            part.problem(f"pointnet2_ops of POINTNET2={source}: {error}")
        yield


PARTS: dict[str, Callable[[Part], None]] = {
    "tests": run_tests,
    "steps": gpu_steps.run_steps,
    "syncs": gpu_steps.run_syncs,
    "compiled": gpu_steps.run_compiled,
    "ops": run_ops,
    "train": gpu_train.run_train,
}


@exit_on_error
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one part. An error is written to its file before the process exits with code 1."""
    parser = argparse.ArgumentParser(prog="python -m pc_ewa.benchmark.gpu", description=__doc__)
    parser.add_argument("part", choices=tuple(PARTS))
    parser.add_argument("out", type=Path, help="an existing folder")
    parser.add_argument("--seconds", type=float, default=300, help="how long the part may take (default: 300)")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, toy-sized: measures nothing")
    options = parser.parse_args(arguments)
    if not options.out.is_dir():
        raise ConfigError(f"OUT={options.out} is not a folder; make it first")
    if not options.rehearse and not torch.cuda.is_available():
        raise ConfigError("torch finds no CUDA device here; run this on a machine with one, or add --rehearse")
    plan = REHEARSAL if options.rehearse else REAL
    part = Part(options.part, options.out, plan, time.monotonic() + options.seconds)
    # Write the file before any work: a part that is killed then leaves one without tables, not an old one.
    part.write()
    backend = compiled.BACKEND
    if options.rehearse:
        compiled.BACKEND = "eager"  # capture graphs, but skip the minute that the compiler takes
    try:
        PARTS[options.part](part)
    except Exception as error:
        traceback.print_exc()
        part.problem(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
    finally:
        compiled.BACKEND = backend
    part.write()
    if part.problems:
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main())
