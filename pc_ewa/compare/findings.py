"""The evidence of a comparison as text: verdicts, a table, and remarks on how to read them."""

from pc_ewa.compare.difference import Difference, verdict, write_score
from pc_ewa.compare.evidence import (
    PRIMARY,
    Evidence,
    Results,
    compared,
    corrected,
    effect_of_interest,
    evidence,
    found_differences,
    metric_of_results,
    planned,
    reference,
)
from pc_ewa.compare.markdown import filled, table
from pc_ewa.eval.metric import Metric


def finding(results: Results, variant: str) -> str:
    """Return the verdict on a variant, corrected for all planned comparisons."""
    found = found_differences(results, variant).get(PRIMARY)
    family = corrected(results)
    explored = "" if variant in family or found is None or found.p is None else "explored: "
    return explored + verdict(found, metric_of_results(results), family.get(variant), effect_of_interest(results))


def evidence_table(results: Results) -> list[str]:
    """Write the table of evidence and an empty line. Returns no lines if no comparison has two pairs."""
    shown = {name: entry for name, entry in evidence(results).items() if _has_width(entry.found)}
    if not shown:
        return []
    metric, effect = metric_of_results(results), effect_of_interest(results)
    unit = " points" if metric.percent else ""
    rows = [["evidence", "p, corrected", "changes it by less than", "over seeds and test samples"]]
    rows[0] += ["deviation of a difference", "smallest effect seen"]
    rows[0] += ["" if effect is None else f"seeds that {write_score(effect, metric)}{unit} need"]
    rows += [[_title(results, name), *_cells(entry, metric, effect)] for name, entry in shown.items()]
    return [*table(filled(rows)), ""]


def about_evidence(results: Results, highlight: str) -> list[str]:
    """Write the remarks on how to read verdicts and the table of evidence."""
    shown = {name: entry for name, entry in evidence(results).items() if _has_width(entry.found)}
    count, explored = len(planned(results)), [name for name in compared(results) if name not in planned(results)]
    lines = []
    if count > 1 and shown:
        some = " Those that are called explored were not planned, and are not corrected." if explored else ""
        what = "comparisons were planned" if results.get("comparisons") else "comparisons"
        lines.append(f"{count} {what}: verdicts are corrected for all of them (Holm, 5 %), intervals are not.{some}")
    if highlight in shown:
        lines.append(_equivalence(results, highlight, shown[highlight]))
    if shown:
        lines.append(
            "Of the evidence: the limit of a change is that of two one-sided tests of 5 % (TOST, the 90 % interval); "
            "an interval over seeds and test samples is of a bootstrap of both (95 %), all others are on these test "
            "samples; the smallest effect is what a two-sided test of 5 % of these pairs sees with 80 % power."
        )
    return lines


def _equivalence(results: Results, name: str, entry: Evidence) -> str:
    metric = metric_of_results(results)
    limit, unit = write_score(entry.found.margin or 0.0, metric, _digits(metric)), " points" if metric.percent else ""
    other = results["variants"][reference(results, name)]["title"]
    return (
        f"{results['variants'][name]['title']} changes {metric.title} by less than ±{limit}{unit} against {other}, "
        f"with 95 % confidence, over {entry.found.seeds} pairs."
    )


def _cells(entry: Evidence, metric: Metric, effect: float | None) -> list[str]:
    found, digits = entry.found, _digits(metric)
    sign = 1 if metric.higher_is_better else -1
    both = sorted(sign * end for end in entry.both) if entry.both else []
    return [
        "" if entry.p is None else f"{entry.p:.2g}" + ("" if entry.planned else " (plain)"),
        f"±{write_score(found.margin or 0.0, metric, digits)}",
        " to ".join(write_score(end, metric, digits, "+") for end in both),
        write_score(found.std or 0.0, metric, digits),
        write_score(entry.sees, metric, digits),
        "" if effect is None else "over 100,000" if entry.needs is None else str(entry.needs),
    ]


def _title(results: Results, name: str) -> str:
    title, other = results["variants"][name]["title"], reference(results, name)
    return str(title) if other == results["baseline"] else f"{title}, against {results['variants'][other]['title']}"


def _has_width(found: Difference) -> bool:
    """Return True if the differences vary by more than rounding. Otherwise a t test is not defined."""
    return found.std is not None and found.std > 1e-9 * max(1.0, abs(found.mean))


def _digits(metric: Metric) -> int:
    return 2 if metric.percent else 6
