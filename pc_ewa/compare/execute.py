"""Execute runs in subprocesses, `jobs` at a time.

A failed run is reported and the others continue. A signal stops all of them.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pc_ewa.compare.machine import cores
from pc_ewa.compare.plan import Plan, Run

_LOOK_EVERY = 0.1  # seconds


class Stopped(Exception):  # noqa: N818 - not an error
    """A signal stopped the comparison; the running processes have saved."""


class Broken(NamedTuple):
    """A run that did not finish, with the last line of its output."""

    run: str
    error: str


@dataclass
class Executor:
    """An executor of unfinished runs.

    `jobs` processes run at a time. `total` is the expected number of runs, for the progress lines. `broken` collects
    failed runs, which the same executor does not try again. `landed` is called with each run as soon as it has
    finished. The processes inherit the file descriptor `lock`: if this process is killed, the comparison stays locked
    until they have ended.
    """

    plan: Plan
    jobs: int
    total: int
    lock: int | None = None
    landed: Callable[[Run], None] = lambda run: None
    broken: dict[Path, Broken] = field(default_factory=dict)
    done: int = 0
    began: float = field(default_factory=time.monotonic)
    _asked: set[subprocess.Popen[bytes]] = field(default_factory=set)

    def execute(self, runs: Sequence[Run]) -> None:
        """Execute the runs that are neither finished nor broken, in this order.

        Raises:
            Stopped: SIGTERM, SIGHUP or Ctrl-C arrived. The processes have saved and ended. A second Ctrl-C kills them.
        """
        waiting = [run for run in runs if not run.files.is_finished and run.folder not in self.broken]
        running: dict[subprocess.Popen[bytes], tuple[Run, float]] = {}
        with _stop_signals(running) as stop:
            while waiting or running:
                while waiting and len(running) < self.jobs and not stop:
                    run = waiting.pop(0)
                    running[self._start(run)] = (run, time.monotonic())
                self._collect(running, bool(stop))
                if stop:
                    self._stop(running, kill=stop.count(signal.SIGINT) > 1)
                    waiting.clear()
                if running:
                    time.sleep(_LOOK_EVERY)
        if stop:
            raise Stopped

    def _collect(self, running: dict[subprocess.Popen[bytes], tuple[Run, float]], stopping: bool) -> None:
        """Remove the processes that have ended, and report them."""
        for process in [process for process in running if process.poll() is not None]:
            run, since = running.pop(process)
            if stopping:
                log_file(run).unlink()
            else:
                self._tell(run, process.returncode, time.monotonic() - since)

    def _stop(self, running: dict[subprocess.Popen[bytes], tuple[Run, float]], kill: bool) -> None:
        """Send SIGTERM to every process once; it saves and ends."""
        new = running.keys() - self._asked
        for process in new:
            process.terminate()
        if new and not self._asked:
            with suppress(OSError):  # the terminal may be gone
                print("\nstopping: the runs save first; Ctrl-C again does not wait for them", flush=True)
        self._asked |= new
        if kill:
            for process in running:
                process.kill()

    def _start(self, run: Run) -> subprocess.Popen[bytes]:
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // self.jobs))
        command = [sys.executable, "-m", "pc_ewa", "train", self.plan.comparison.experiment, *run.overrides]
        # Unlinked, not truncated: a process of a killed comparison may still write to the old file.
        log_file(run).unlink(missing_ok=True)
        with log_file(run).open("wb") as log:
            # In a separate session Ctrl-C reaches this process alone, which forwards it once as SIGTERM.
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": threads},
                start_new_session=True,
                # Windows cannot pass file descriptors.
                pass_fds=() if self.lock is None or sys.platform == "win32" else (self.lock,),
            )

    def _tell(self, run: Run, code: int, seconds: float) -> None:
        """Print the outcome of a run that has ended, and record it if it failed."""
        self.done += 1
        summary = run.files.summary()
        if summary is None:
            name = "/".join(run.folder.relative_to(self.plan.output).parts)
            self.broken[run.folder] = Broken(name, _last_line(run, code))
            outcome = f"BROKEN: {self.broken[run.folder].error} ({log_file(run)})"
        else:
            log_file(run).unlink(missing_ok=True)  # the run folder has its own
            metric = self.plan.metric
            value = summary[f"val_{metric.key}"]
            outcome = "done" if value is None else f"validation {metric.title} {metric.format(value)}"
        left = (time.monotonic() - self.began) / self.done * (self.total - self.done)
        ahead = f"; about {duration(left)} left" if self.done < self.total else ""
        print(f"[{self.done}/{self.total}] {run.title}: {outcome}, {duration(seconds)}{ahead}", flush=True)
        if summary is not None:
            self.landed(run)


def log_file(run: Run) -> Path:
    """Return the path of the output of a run. The file is kept only if the run fails."""
    return run.folder.with_name(f"{run.folder.name}.log")


def duration(seconds: float) -> str:
    """Write a time in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _last_line(run: Run, code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    lines = log_file(run).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else f"exit code {code} without a word"


@contextmanager
def _stop_signals(running: dict[subprocess.Popen[bytes], tuple[Run, float]]) -> Iterator[list[int]]:
    """Collect stop signals instead of exiting. Processes are terminated however the block ends."""
    received: list[int] = []
    numbers = [signal.SIGTERM, signal.SIGINT]
    # Windows has no SIGHUP. Under nohup it is ignored, and must stay so.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, lambda number, frame: received.append(number)) for number in numbers}
    try:
        yield received
    finally:
        for process in running:
            process.terminate()
        for number, handler in before.items():
            signal.signal(number, handler)
