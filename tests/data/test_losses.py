"""What is said of recordings that are lost, and when that is too much."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from raykfold.data.layouts import Listing, Recording
from raykfold.data.losses import describe_loss, require_most
from raykfold.errors import BadData

# 40 recordings in four folds of ten; the last two of each fold are cats.
LISTING = Listing(
    [Recording(Path(f"{n}.wav"), int(n % 10 > 7), n // 10 + 1) for n in range(40)],
    {0: "dog", 1: "cat"},
    "metadata.csv",
    {4: "dora"},
)


def lost(indices: Iterable[int]) -> dict[int, str]:
    return {index: f"{index}.wav: no such file" for index in indices}


def refusal(indices: Iterable[int], *, allow_missing: bool = False) -> str:
    with pytest.raises(BadData) as caught:
        require_most(LISTING, lost(indices), allow_missing=allow_missing)
    return str(caught.value)


@pytest.mark.parametrize("indices", [[], [0], [38, 39, 0, 1], [8, 9, 18, 19]])
def test_a_tenth_may_be_lost(indices: list[int]) -> None:
    require_most(LISTING, lost(indices), allow_missing=False)


def test_more_than_a_tenth_is_refused() -> None:
    assert refusal([3, 4, 8, 31, 32]) == (
        "metadata.csv: recordings lost: 5 of 40 (12 %); fold 1: 3 of 10 (30 %), fold 4 (dora): "
        "2 of 10 (20 %); class 0 (dog): 4 of 32 (12 %), class 1 (cat): 1 of 8 (12 %); the first: "
        "3.wav: no such file; expected at most a tenth lost, and no whole fold or class "
        "(--allow_missing goes on without them)"
    )


def test_no_fold_and_no_class_may_vanish() -> None:
    assert "nothing is left of fold 4 (dora); " in refusal(range(30, 40))
    cats = [index for index, each in enumerate(LISTING.recordings) if each.label == 1]
    assert "nothing is left of class 1 (cat); " in refusal(cats)


def test_a_small_fold_may_not_vanish_either() -> None:
    small = Listing(
        [*LISTING.recordings, Recording(Path("e.wav"), 0, 9)], LISTING.class_names, "metadata.csv"
    )
    with pytest.raises(BadData, match=r"fold 9: 1 of 1 \(100 %\).*nothing is left of fold 9;"):
        require_most(small, lost([40]), allow_missing=False)
    require_most(small, lost([40]), allow_missing=True)


def test_what_is_allowed_still_needs_two_folds_and_two_classes() -> None:
    require_most(LISTING, lost(range(20)), allow_missing=True)
    assert "all recordings that can be read are in fold 4 (dora)" in refusal(
        range(30), allow_missing=True
    )
    dogs = [index for index, each in enumerate(LISTING.recordings) if each.label == 0]
    assert "all recordings that can be read are in class 1 (cat)" in refusal(
        dogs, allow_missing=True
    )
    for allow_missing in (False, True):
        assert refusal(range(40), allow_missing=allow_missing) == (
            "none of the 40 recordings could be read; the first: 0.wav: no such file"
        )


def test_long_lists_are_cut() -> None:
    many = Listing([Recording(Path(f"{n}.wav"), n, n) for n in range(200)], {}, "metadata.csv")
    text = describe_loss(many, range(100))
    assert "fold 11: 1 of 1 (100 %) and 88 more; class 0: 1 of 1" in text
