"""Runs as processes of their own, some at a time: what breaks is reported, the rest goes on, a signal stops all."""

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
    """A signal asked to stop; what was running has saved."""


class Broken(NamedTuple):
    """A run that did not reach its end, and the last line that it wrote."""

    run: str
    error: str


@dataclass
class Executor:
    """Runs what is not finished.

    `jobs` processes run at a time; `total` runs are expected, for what progress says. `broken` collects those that did
    not reach their end: they are not tried again by the same executor. `landed` is called with each run that did, as
    soon as it has. The processes inherit the descriptor `lock`: if
    this one is killed, the comparison stays locked until they have ended.
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
        """Run those that are neither finished nor broken, in this order.

        Raises:
            Stopped: SIGTERM, SIGHUP or Ctrl-C; the processes were asked to save and have ended. A second Ctrl-C kills
                them.
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
        """Take out the processes that have ended."""
        for process in [process for process in running if process.poll() is not None]:
            run, since = running.pop(process)
            if stopping:
                log_file(run).unlink()
            else:
                self._tell(run, process.returncode, time.monotonic() - since)

    def _stop(self, running: dict[subprocess.Popen[bytes], tuple[Run, float]], kill: bool) -> None:
        """Ask every process once to save and end."""
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
        log_file(run).unlink(missing_ok=True)  # not emptied: whoever may still write to it keeps it
        with log_file(run).open("wb") as log:
            # A session of its own: Ctrl-C reaches this process alone, which passes it on once, in order.
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": threads},
                start_new_session=True,
                # Windows passes no descriptors on.
                pass_fds=() if self.lock is None or sys.platform == "win32" else (self.lock,),
            )

    def _tell(self, run: Run, code: int, seconds: float) -> None:
        """Print the line of a run that has ended, and note it if it broke."""
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
    """Return where the output of a run goes while it runs; it stays if the run breaks."""
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
    """Collect what asks to stop instead of dying of it; whatever else ends the block, no process is left behind."""
    received: list[int] = []
    numbers = [signal.SIGTERM, signal.SIGINT]
    # Windows has no SIGHUP, and nohup ignores it.
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
