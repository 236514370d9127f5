"""The origin of the runs of a comparison: machines, versions and days, and a check that all used the same data."""

from collections.abc import Iterable
from typing import Any

from pc_ewa.compare.ledger import provenance
from pc_ewa.compare.plan import Plan, Run
from pc_ewa.errors import ConfigError


def sittings(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Count the finished runs by hardware and versions, with the first and the last day of each."""
    found: dict[tuple[str | None, ...], dict[str, Any]] = {}
    for run in runs:
        told = provenance(run)
        place = {key: told[key] for key in ("hardware", "python", "torch")}
        day = told["date"] or ""
        entry = found.setdefault(tuple(place.values()), {**place, "first": day, "last": day, "runs": 0})
        entry |= {"first": min(entry["first"], day), "last": max(entry["last"], day), "runs": entry["runs"] + 1}
    return list(found.values())


def check_same_data(plan: Plan, runs: Iterable[Run]) -> None:
    """Check that finished runs with the same data settings, seed and fold used the same samples.

    Raises:
        ConfigError: two runs with different data, such as runs of machines with different files.
    """
    seen: dict[tuple[str, str], tuple[str, Run]] = {}
    for run in runs:
        digest = (run.files.summary() or {}).get("data")
        if digest is None:  # a run of an earlier version has none
            continue
        key = (run.key, plan.resolve(run).data.model_dump_json())
        before, first = seen.setdefault(key, (digest, run))
        if before != digest:
            raise ConfigError(
                f"{run.folder} and {first.folder} saw different data: files of two machines differ; delete the runs "
                "of one, and take its lines out of the ledger"
            )
