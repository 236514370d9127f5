"""Runs as processes: what breaks is told and the rest goes on; a signal lets them save. The trainer is a stand-in."""

import fcntl
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from compare_folder import finish

from pc_ewa.compare import Options, Plan, compare
from pc_ewa.compare.execute import Executor, Stopped, duration, log_file
from pc_ewa.errors import ConfigError

Make = Callable[..., Plan]


WRITE = """echo '{"main_metric": "accuracy", "val_accuracy": 0.25}' > "$folder/summary.json" """


def test_only_what_is_not_finished_runs_and_what_breaks_is_told(
    plan: Make, trainer: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    made = plan("seeds=[0,1,2]", "sweep=null")
    runs = made.final_runs("ewa", None)
    finish(made, runs[0])
    written = (runs[0].folder / "summary.json").stat().st_mtime_ns
    trainer(f'case "$*" in *seed=1*) echo starting; echo "error: no such layer"; exit 2;; *) {WRITE};; esac')
    executor = Executor(made, jobs=1, total=2)
    executor.execute(runs)
    assert (runs[0].folder / "summary.json").stat().st_mtime_ns == written
    assert [tuple(entry) for entry in executor.broken.values()] == [("ewa/seed_1", "no such layer")]
    assert log_file(runs[1]).read_text() == "starting\nerror: no such layer\n"
    assert not log_file(runs[2]).exists()
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("[1/2] ewa seed_1: BROKEN: no such layer (runs/compare/toys/ewa/seed_1.log), 0 s; about ")
    assert second == "[2/2] ewa seed_2: validation accuracy 25.0%, 0 s"
    executor.execute(runs)  # what broke is not tried twice
    assert capsys.readouterr().out == ""


def test_a_run_that_was_killed_says_so(plan: Make, trainer: Callable[[str], None]) -> None:
    made = plan("sweep=null")
    trainer("kill -9 $$")
    executor = Executor(made, jobs=2, total=2)
    executor.execute(made.final_runs("ewa", None))
    assert [entry.error for entry in executor.broken.values()] == ["killed by SIGKILL (out of memory?)"] * 2


def test_the_cores_are_shared_among_the_jobs(
    plan: Make, trainer: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("pc_ewa.compare.execute.cores", lambda: 8)
    made = plan("sweep=null", "seeds=[0]")
    trainer(f'echo $OMP_NUM_THREADS > "$folder/threads"; {WRITE}')
    Executor(made, jobs=3, total=1).execute(made.final_runs("ewa", None))
    assert Path("runs/compare/toys/ewa/seed_0/threads").read_text() == "2\n"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    Executor(made, jobs=3, total=1).execute(made.final_runs("dense", None))
    assert Path("runs/compare/toys/dense/seed_0/threads").read_text() == "5\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_the_runs_save_and_starts_no_more(
    plan: Make, trainer: Callable[[str], None], number: signal.Signals
) -> None:
    """The first run sends it to the tool itself, as a terminal would."""
    made = plan("sweep=null", "seeds=[0,1,2]")
    waits = "for i in $(seq 1000); do sleep 0.02; done"  # not for ever: a signal that is lost shall fail the test
    trainer(f"""trap 'echo saved > "$folder/saved"; exit 0' TERM; kill -{int(number)} {os.getpid()}; {waits}""")
    outside = signal.signal(number, signal.SIG_DFL)  # it is ignored where the tests run under nohup
    try:
        with pytest.raises(Stopped):
            Executor(made, jobs=1, total=3).execute(made.final_runs("ewa", None))
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, outside)
    folder = Path("runs/compare/toys/ewa")
    assert sorted(path.name for path in folder.iterdir()) == ["seed_0"]
    assert (folder / "seed_0" / "saved").is_file()


def test_under_nohup_a_hangup_stops_nothing(
    plan: Make, trainer: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan("sweep=null", "seeds=[0]")
    trainer(f"kill -HUP {os.getpid()}; {WRITE}")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        Executor(made, jobs=1, total=1).execute(made.final_runs("ewa", None))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert Path("runs/compare/toys/ewa/seed_0/summary.json").is_file()


def test_a_second_interrupt_does_not_wait(plan: Make, trainer: Callable[[str], None]) -> None:
    made = plan("sweep=null", "seeds=[0]")
    again = f"kill -2 {os.getpid()}"
    trainer(f"trap '{again}' TERM; {again}; for i in $(seq 1000); do sleep 0.02; done")
    with pytest.raises(Stopped):
        Executor(made, jobs=1, total=1).execute(made.final_runs("ewa", None))


def test_two_comparisons_do_not_share_a_folder(plan: Make, trainer: Callable[[str], None]) -> None:
    made = plan("sweep=null", "seeds=[0]")

    def second(*_: object) -> None:
        with pytest.raises(ConfigError, match="runs/compare/toys is in use by another comparison"):
            compare(made, Options(costs=False))
        raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Executor, "execute", second)
        with pytest.raises(Stopped):
            compare(made, Options(costs=False))


def test_runs_that_outlive_the_comparison_keep_it_locked(plan: Make, trainer: Callable[[str], None]) -> None:
    """It is killed in such a way that it can stop nothing."""
    made = plan("sweep=null", "seeds=[0]")
    trainer('echo $$ > "$folder/pid.tmp"; mv "$folder/pid.tmp" "$folder/pid"; exec sleep 20')
    pid = made.output / "dense" / "seed_0" / "pid"
    first = multiprocessing.get_context("fork").Process(target=compare, args=(made, Options(costs=False, jobs=1)))
    first.start()
    _wait(lambda: pid.is_file() or not first.is_alive())
    first.kill()
    first.join()
    try:
        with pytest.raises(ConfigError, match="or by runs still going on of one that was killed"):
            compare(made, Options(costs=False))
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)
    trainer(WRITE)
    _wait(lambda: _is_free(made.output))
    assert compare(made, Options(costs=False)) == []


def test_a_log_that_is_still_written_to_is_not_emptied(plan: Make, trainer: Callable[[str], None]) -> None:
    made = plan("sweep=null", "seeds=[0]")
    (run,) = made.final_runs("ewa", None)
    log_file(run).parent.mkdir(parents=True)
    log_file(run).write_text("from another run\n")
    trainer(WRITE)
    with log_file(run).open() as other:
        Executor(made, jobs=1, total=1).execute([run])
        assert other.read() == "from another run\n"


def _wait(ready: Callable[[], bool]) -> None:
    for _ in range(3000):
        if ready():
            return
        time.sleep(0.01)
    raise AssertionError("waited 30 s in vain")


def _is_free(folder: Path) -> bool:
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_times_are_told_in_units_that_fit() -> None:
    assert [duration(seconds) for seconds in (4.4, 99, 150, 5000, 9000)] == [
        "4 s",
        "99 s",
        "2 min",
        "83 min",
        "2 h 30 min",
    ]
