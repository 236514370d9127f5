"""The forest plot: the rows that it has, and that a stale picture is told from a fresh one."""

import io
from typing import Any

from pc_ewa.compare.forest import band, digest, draw_forest, forest_rows


def _variant(title: str, *scores: float, **more: Any) -> dict[str, Any]:
    return {"title": title, "scores": {"merged": {str(seed): score for seed, score in enumerate(scores)}}, **more}


def results(**more: Any) -> dict[str, Any]:
    return {
        "title": "Toys cost $5 or $6",
        "main_metric": "accuracy",
        "higher_is_better": True,
        "baseline": "dense",
        "variants": {
            "dense": _variant("dense", 0.50, 0.51, 0.52),
            "ewa": _variant("EWA", 0.60, 0.62, 0.61),
            "rup": _variant("RUP", 0.50, 0.52, 0.51),
            "naive": _variant("naive", 0.50, 0.50, 0.52),
            "naive_ewa": _variant("naive + EWA", 0.40, 0.41, 0.42, against="naive"),
        },
        **more,
    }


def test_the_rows_are_those_of_ewa_and_of_variants_with_their_own_reference() -> None:
    rows = forest_rows([results(), results(summary=False), results(main_metric="loss", higher_is_better=False)])
    assert [(row.label, round(row.mean, 6), row.seeds) for row in rows] == [
        ("EWA, against dense", 10.0, 3),
        ("naive + EWA, against naive", round(100 * (0.41 - 1.52 / 3), 6), 3),
    ]
    assert rows[0].low < 10 < rows[0].high
    assert [row.label for row in forest_rows([results(highlight="rup")])] == [
        "RUP, against dense",
        "naive + EWA, against naive",
    ]
    gain, loss = (row.color for row in rows)
    assert gain != loss
    one = results()
    one["variants"]["ewa"] = _variant("EWA", 0.6)
    assert [row.label for row in forest_rows([one])] == ["naive + EWA, against naive"]  # one seed has no interval


def test_the_band_is_the_smallest_effect_of_interest() -> None:
    assert band([results(), results(effect=0.25)]) == 0.25
    assert band([]) == 0.5


def test_the_picture_says_which_rows_it_shows() -> None:
    rows = forest_rows([results()])
    file = io.BytesIO()
    draw_forest(rows, file)
    assert file.getvalue().startswith(b"\x89PNG")
    assert digest(rows).encode() in file.getvalue()
    assert digest(forest_rows([results(title="Others")])).encode() not in file.getvalue()
