from __future__ import annotations

import pandas as pd
import pytest

from splits import labels
from splits.errors import InputError


def table(**slides: tuple[str, str | None]) -> pd.DataFrame:
    rows = [(slide, patient, label) for slide, (label, patient) in slides.items()]
    return pd.DataFrame(rows, columns=["slide_id", "patient_id", "label"])


MIXED = table(
    s1=("benign", "p1"), s2=("benign", "p1"), s3=("malignant", "p1"), s4=("benign", "p2"),
    s5=("malignant", None), s6=("benign", None),
)  # fmt: skip


def test_every_slide_counts_for_itself_unless_told_otherwise() -> None:
    settled, changed = labels.apply(MIXED, "slide")
    assert settled["label"].tolist() == MIXED["label"].tolist()
    assert changed == {}


def test_majority_takes_the_commonest_label_of_a_patient() -> None:
    settled, changed = labels.apply(MIXED, "majority")
    assert changed == {"s3": "benign"}
    assert settled.set_index("slide_id")["label"]["s3"] == "benign"
    # Slides without a patient are patients of their own and keep theirs.
    assert settled.set_index("slide_id")["label"]["s5"] == "malignant"


def test_max_takes_the_highest_label() -> None:
    _, changed = labels.apply(MIXED, "max", ["benign", "malignant"])
    assert changed == {"s1": "malignant", "s2": "malignant"}
    grades = table(a=("10", "p"), b=("9", "p"))
    assert labels.apply(grades, "max")[1] == {"b": "10"}  # as numbers, not as text


def test_reject_names_the_patients() -> None:
    with pytest.raises(InputError, match=r"1 patient.*p1: benign, malignant"):
        labels.apply(MIXED, "reject")
    clean = MIXED[MIXED["slide_id"] != "s3"]
    assert labels.apply(clean, "reject")[1] == {}


@pytest.mark.parametrize("policy", ["majority", "max"])
def test_an_order_that_is_needed_is_asked_for(policy: str) -> None:
    tie = table(a=("x", "p"), b=("y", "p"))
    with pytest.raises(InputError, match="lowest to highest"):
        labels.apply(tie, policy)
    assert labels.apply(tie, policy, ["y", "x"])[1] == {"b": "x"}


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'majority'"):
        labels.apply(MIXED, "majorty")
    with pytest.raises(InputError, match="'malignant'; did you mean 'malignent'"):
        labels.apply(MIXED, "max", ["benign", "malignent"])


def test_row_order_changes_nothing() -> None:
    shuffled = MIXED.sample(frac=1, random_state=1)
    assert labels.apply(shuffled, "majority")[1] == labels.apply(MIXED, "majority")[1]
