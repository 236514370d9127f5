import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
