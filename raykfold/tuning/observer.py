"""The interface of those who follow a search."""

from __future__ import annotations

from raykfold.training.search_results import Trial


class SearchObserver:
    """Follows the trials of a search in the driver's process. Override what you need."""

    def trial_began(self, trial: Trial) -> None:
        """A trial begins, or resumes."""

    def trial_scored(self, trial: Trial) -> None:
        """All folds of a trial have completed one more epoch."""

    def trial_ended(self, trial: Trial) -> None:
        """A trial is complete, was stopped, or has failed."""

    def noticed(self, text: str) -> None:
        """Something that the user should know, in one line."""

    def of_outer(self, fold: int) -> SearchObserver:
        """Return the observer of the search within an outer fold; by default it does nothing."""
        return SearchObserver()
