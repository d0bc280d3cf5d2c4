"""A claim survives a trip through JSON, refuses nonsense, and reads well in a terminal."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poster_jax.core import claims
from poster_jax.core.claims import Claim, format_number

NUMBERS = st.floats(allow_nan=False) | st.just(float("inf"))
TEXTS = st.text(min_size=1).filter(str.strip)


def make(**changes):
    values = {
        "poster": "relative_flatness",
        "name": "C2",
        "claim": "Relative flatness goes with the generalisation gap.",
        "paper": "Pearson about 0.9",
        "measured": 0.5,
        "unit": "Kendall tau",
        "interval": (0.25, 0.75),
        "interval_of": "95 % bootstrap over 180 networks",
        "rule": "the lower end is above 0",
        "holds": True,
    }
    return Claim(**{**values, **changes})


@given(st.lists(NUMBERS, min_size=3, max_size=3), TEXTS, st.booleans())
def test_a_claim_survives_json_to_the_bit(numbers, text, with_interval):
    measured, *ends = numbers
    claim = make(
        measured=measured,
        interval=tuple(sorted(ends)) if with_interval else None,
        holds=math.isfinite(measured),
        claim=text,
        num_nonfinite=2,
    )
    (back,) = claims.from_json(claims.to_json([claim]))
    assert back == claim


def test_json_is_strict_json_even_when_the_figure_is_not_finite():
    text = claims.to_json([make(measured=float("nan"), interval=None, holds=False)])
    row = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert row["claims"][0]["measured"] == "nan"
    assert math.isnan(claims.from_json(text)[0].measured)


def test_rows_have_what_every_reader_needs():
    (row,) = json.loads(claims.to_json([make()], about={"seed": 3}))["claims"]
    assert {"poster", "claim", "measured", "interval", "rule", "holds", "paper", "control"} <= set(
        row
    )


def test_a_file_holds_what_was_saved(tmp_path):
    saved = [make(), make(name="C3", holds=False)]
    claims.save_claims(tmp_path / "claims.json", saved)
    assert claims.load_claims(tmp_path / "claims.json") == saved
    assert [p.name for p in tmp_path.iterdir()] == ["claims.json"]


def test_the_table_says_what_was_found_and_hides_no_failure():
    text = claims.table([make(), make(name="C3", holds=False, num_nonfinite=4)], width=150)
    assert "0.5 Kendall tau" in text
    assert "0.25 to 0.75" in text
    assert "NO" in text
    assert "4 not finite" in " ".join(text.split())
    assert text.endswith("1 of 2 claims hold.")
    assert max(len(line) for line in text.splitlines()) <= 150


def test_text_in_brackets_is_text():
    assert "[1, 2]" in claims.table([make(claim="factors in [1, 2] /italic [red]x[/red]")])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1e-7, "1e-07"), (0.001234, "0.00123"), (99.96, "100"), (-123456, "-123,000")],
)
def test_numbers_read_well(value, text):
    assert format_number(value) == text


@given(st.floats(-1e300, 1e300))
def test_a_shown_number_is_within_half_a_unit_of_the_third_digit(value):
    assert math.isclose(float(format_number(value).replace(",", "")), value, rel_tol=5.01e-3)


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        ({"poster": " "}, ValueError, "poster"),
        ({"rule": ""}, ValueError, "rule"),
        ({"measured": "high"}, TypeError, "measured"),
        ({"measured": True}, TypeError, "measured"),
        ({"measured": float("nan")}, ValueError, "holds"),
        ({"interval": (1.0, 0.0)}, ValueError, "interval"),
        ({"interval": 3.0}, ValueError, "interval"),
        ({"holds": "yes"}, TypeError, "holds"),
        ({"num_samples": -1}, ValueError, "num_samples"),
    ],
)
@pytest.mark.bad_input
def test_nonsense_is_refused_by_name(changes, error, word):
    with pytest.raises(error, match=word):
        make(**changes)


@pytest.mark.parametrize("text", ["", "[]", '{"claims": [{}]}', '{"claims": 3}'])
def test_a_text_that_is_no_claims_file_is_refused(text):
    with pytest.raises(ValueError, match="to_json"):
        claims.from_json(text)
