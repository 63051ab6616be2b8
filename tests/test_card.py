import json
from pathlib import Path

import pytest

from modeling_mmemo.evaluation.card import BEGIN, END, results_section, update_card


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def results():
    return json.loads((ROOT / "results" / "default" / "results.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("card", ["model_card.md", "README.md"])
def test_the_committed_figures_are_those_that_were_measured(card, results, tmp_path):
    committed = (ROOT / card).read_text(encoding="utf-8")
    copy = tmp_path / card
    copy.write_text(committed, encoding="utf-8")

    update_card(copy, results)

    assert copy.read_text(encoding="utf-8") == committed


def test_only_what_stands_between_the_marks_is_replaced(results, tmp_path):
    card = tmp_path / "card.md"
    card.write_text(f"# Mine\n{BEGIN}\nold\n{END}\nkept\n", encoding="utf-8")

    update_card(card, results)

    assert card.read_text(encoding="utf-8") == f"# Mine\n{BEGIN}\n{results_section(results)}\n{END}\nkept\n"


@pytest.mark.parametrize("text", ["no marks", BEGIN, f"{END} {BEGIN}", f"{BEGIN} {END} {BEGIN} {END}"])
def test_a_card_without_its_marks_is_refused(text, results, tmp_path):
    card = tmp_path / "card.md"
    card.write_text(text, encoding="utf-8")

    with pytest.raises(ValueError, match="once each, in this order"):
        update_card(card, results)

    assert card.read_text(encoding="utf-8") == text
