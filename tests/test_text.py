import unicodedata

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pc_ewa.errors import DataError, exit_on_error
from pc_ewa.eval import Accuracy, Segmentation
from pc_ewa.text import printable


@given(text=st.text(st.characters()), limit=st.integers(5, 80))  # all of Unicode, halves of surrogate pairs too
def test_nothing_that_a_terminal_obeys_is_left(text: str, limit: int) -> None:
    cleaned = printable(text, limit)
    assert len(cleaned) <= limit
    assert cleaned.isprintable()
    cleaned.encode()
    assert not {unicodedata.bidirectional(c) for c in cleaned} & {
        "LRE",
        "RLE",
        "LRO",
        "RLO",
        "PDF",
        "LRI",
        "RLI",
        "FSI",
    }
    assert printable(cleaned, limit) == cleaned


@pytest.mark.parametrize("text", ["chair", "night stand", "Stühle", "椅子", "كرسي", "a/b_1.ply", ""])
def test_names_in_any_script_stay(text: str) -> None:
    assert printable(text) == text


def test_what_is_replaced_and_what_is_cut() -> None:
    assert printable("\x1b[31m\nerror: fake\x00\u202e\ud800\u2028") == "?[31m?error: fake????"
    assert printable("a\u00a0b\u3000c") == "a b c"
    assert printable("x" * 10_000, None) == "x" * 10_000
    assert printable("first" + "x" * 10_000 + "last", 20) == "firstxxxxxxxx...last"


HOSTILE = ("\x1b[31mred", "a\nerror: fake line", "\u202eright to left", "n" * 10_000, "bell\x07\x00")


def test_tables_show_names_of_files_clean() -> None:
    """Class names come from whoever made the checkpoint."""
    count = len(HOSTILE)
    accuracy = Accuracy(torch.ones(count, count, dtype=torch.int64), HOSTILE)
    parts = Segmentation(torch.ones(count, dtype=torch.float64), torch.arange(count), HOSTILE, 1, 1)
    for table in (accuracy.table(), parts.table()):
        assert all(line.isprintable() and len(line) < 200 for line in table.splitlines())
        assert "\nerror" not in table


def test_lines_of_errors_are_clean(capsys: pytest.CaptureFixture[str]) -> None:
    @exit_on_error
    def main() -> None:
        raise DataError(f"class {HOSTILE[0]} {HOSTILE[4]}")

    assert main() == 2
    assert capsys.readouterr().err.rstrip("\n").isprintable()
