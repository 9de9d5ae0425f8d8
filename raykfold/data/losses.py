"""Says what is lost with recordings, of which folds and classes, and refuses to lose too much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import NamedTuple

from raykfold.data.layouts import Listing, require_several
from raykfold.errors import BadData
from raykfold.text import comma_list, with_name

_MOST_LOST = 0.1  # of all recordings
_MOST_LISTED = 12  # folds, and classes, in a message


class _Share(NamedTuple):
    """How many recordings of a fold, of a class or of all are lost."""

    of: str
    lost: int
    total: int

    def __str__(self) -> str:
        return f"{self.of}: {self.lost} of {self.total} ({100 * self.lost / self.total:.0f} %)"


def require_most(listing: Listing, lost: Mapping[int, str], *, allow_missing: bool) -> None:
    """Check that a cross-validation without the recordings that are lost is still the one meant.

    Args:
        listing: all recordings.
        lost: index → why that recording cannot be used.
        allow_missing: be content with two folds and two classes.

    Raises:
        BadData: no recording of a fold or of a class is left, or more than a tenth is lost.
    """
    left = [each for index, each in enumerate(listing.recordings) if index not in lost]
    if not left:
        raise BadData(
            f"none of the {len(lost)} recordings could be read; the first: {lost[min(lost)]}"
        )
    if allow_missing:
        require_several(listing, left)
        return
    shares = (*_shares(listing, lost, "fold"), *_shares(listing, lost, "class"))
    gone = [share.of for share in shares if share.lost == share.total]
    if gone or len(lost) > _MOST_LOST * len(listing.recordings):
        nothing_left = f"; nothing is left of {comma_list(gone[:_MOST_LISTED])}" if gone else ""
        raise BadData(
            f"{listing.source}: {describe_loss(listing, lost)}{nothing_left}; the first: "
            f"{lost[min(lost)]}; expected at most a tenth lost, and no whole fold or class "
            "(--allow_missing goes on without them)"
        )


def describe_loss(listing: Listing, lost: Collection[int]) -> str:
    """Return ``recordings lost: 1 of 9 (11 %); fold 2: 1 of 4 (25 %); class 0 (cat): ...``."""
    whole = _Share("recordings lost", len(lost), len(listing.recordings))
    folds, classes = (_some(_shares(listing, lost, noun)) for noun in ("fold", "class"))
    return f"{whole}; {folds}; {classes}"


def _shares(listing: Listing, lost: Collection[int], noun: str) -> list[_Share]:
    """Return the shares of the folds, or of the classes, that lose any recording."""
    if noun == "fold":
        values, names = [each.fold for each in listing.recordings], listing.fold_names
    else:
        values, names = [each.label for each in listing.recordings], listing.class_names
    totals, losses = Counter(values), Counter(values[index] for index in lost)
    return [
        _Share(f"{noun} {with_name(value, names)}", losses[value], totals[value])
        for value in sorted(losses)
    ]


def _some(shares: list[_Share]) -> str:
    more = len(shares) - _MOST_LISTED
    return ", ".join(map(str, shares[:_MOST_LISTED])) + (f" and {more} more" if more > 0 else "")
