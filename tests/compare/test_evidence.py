"""What results show as a whole: families of comparisons, references of their own, folds, samples."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from pc_ewa.compare.evidence import evidence, reference
from pc_ewa.compare.findings import finding
from pc_ewa.compare.report import as_markdown
from pc_ewa.eval.right import pack_right

SEEDS, SAMPLES = 5, 200


def _variant(title: str, share: float, seed: int, **more: Any) -> dict[str, Any]:
    """A model that is right on about this share, the same samples every time but for a few."""
    base = np.random.RandomState(7).rand(SAMPLES)
    noise = np.random.RandomState(seed).normal(0, 0.01, (SEEDS, SAMPLES))
    right = base + noise < share
    return {
        "title": title,
        "scores": {"merged": {str(i): float(row.mean()) for i, row in enumerate(right)}},
        "right": {str(i): pack_right(torch.from_numpy(row)) for i, row in enumerate(right)},
        **more,
    }


def results(**more: Any) -> dict[str, Any]:
    variants = {
        "dense": _variant("dense", 0.7, 0),
        "ewa": _variant("EWA", 0.8, 1),
        "rup": _variant("RUP", 0.7, 2),
        "naive": _variant("naive", 0.5, 3),
        "naive_ewa": _variant("naive + EWA", 0.6, 4, against="naive"),
    }
    about = {"title": "Toys", "main_metric": "accuracy", "higher_is_better": True, "baseline": "dense"}
    return {**about, "variants": variants, **more}


def test_a_variant_may_be_compared_with_another_than_the_baseline() -> None:
    found = results()
    assert reference(found, "naive_ewa") == "naive"
    assert evidence(found)["naive_ewa"].found.mean == pytest.approx(0.1, abs=0.02)
    text = as_markdown(found)
    assert "| against naive: gain of " in text
    assert "naive + EWA, against naive" in text
    del found["variants"]["naive"]  # left out as yet: nothing to compare with
    assert "naive_ewa" not in evidence(found)
    assert "no seed in common" in as_markdown(found)


def test_only_planned_comparisons_are_corrected_and_all_of_them_count() -> None:
    found = results(comparisons=["ewa", "naive_ewa", "to_come", "another"])
    plain, shown = evidence(results(comparisons=["ewa"])), evidence(found)
    ratio = (shown["ewa"].p or 0) / (plain["ewa"].p or 1)
    assert min(abs(ratio - rank) for rank in (3, 4)) < 1e-9  # the smaller of the two p values counts four times
    assert shown["rup"].p == shown["rup"].found.p
    assert (shown["ewa"].planned, shown["rup"].planned) == (True, False)
    assert finding(found, "rup").startswith("explored: ")
    assert finding(found, "ewa").startswith("gain of")
    assert "4 comparisons were planned" in as_markdown(found)


def test_the_effect_of_interest_decides_the_seeds_and_what_is_the_same() -> None:
    small, large = evidence(results(effect=0.5))["rup"], evidence(results(effect=3))["rup"]
    assert small.needs is not None
    assert large.needs is not None
    assert small.needs > large.needs >= 2
    assert finding(results(effect=3), "rup").startswith("the same within 3.0 points")
    assert "| seeds that 3.0 points need" in as_markdown(results(effect=3))
    assert evidence(results(effect=None)) == evidence(results(effect=0.5))


def test_the_interval_over_both_is_there_where_the_runs_kept_what_is_right() -> None:
    found = results()
    both = evidence(found)["ewa"].both
    assert both is not None
    assert both[0] < evidence(found)["ewa"].found.mean < both[1]
    low, high = evidence(found)["ewa"].found[1:3]
    assert low is not None
    assert high is not None
    assert both[1] - both[0] > high - low  # the samples vary too
    without = copy.deepcopy(found)
    del without["variants"]["dense"]["right"]
    assert evidence(without)["ewa"].both is None
    assert evidence(without)["naive_ewa"].both is not None


def test_folds_of_a_seed_are_its_samples_side_by_side() -> None:
    """Two folds of 100 samples each give the interval of one test part of 200, and half the seeds are needed."""
    whole = results()
    folded = copy.deepcopy(whole)
    for variant in folded["variants"].values():
        for key in ("scores", "right"):
            kept = variant[key].get("merged", variant[key])
            split = {f"{seed}/{fold}": value for seed, value in kept.items() for fold in (0, 1)}
            variant[key] = {"merged": split} if key == "scores" else split
        for pair in list(variant["right"]):
            seed, fold = pair.split("/")
            half = slice(0, 100) if fold == "0" else slice(100, 200)
            right = evidence_right(whole, variant["title"], seed)[half]
            variant["right"][pair] = pack_right(right)
            variant["scores"]["merged"][pair] = float(right.double().mean())
    folded["folds"] = 2
    assert evidence(folded)["ewa"].both == evidence(whole)["ewa"].both
    assert evidence(folded)["ewa"].found.seeds == 2 * SEEDS
    del folded["variants"]["ewa"]["right"]["0/1"]  # half a seed does not count
    assert evidence(folded)["ewa"].both != evidence(whole)["ewa"].both


def evidence_right(found: dict[str, Any], title: str, seed: str) -> torch.Tensor:
    from pc_ewa.eval.right import unpack_right

    (variant,) = (entry for entry in found["variants"].values() if entry["title"] == title)
    return unpack_right(variant["right"][seed])
