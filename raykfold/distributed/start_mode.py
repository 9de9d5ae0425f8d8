"""How workers are started: with the changes to Ray Train, or as Ray Train starts them."""

from __future__ import annotations


class StartMode:
    """Alternates between two ways to start a share's worker, until one is known to work.

    A later Ray may not go with the changes to its Ray Train. That shows in the start of a worker,
    or as late as its first report. So a way is known to work when a share that was started in it
    has committed a round. Until then, every share that fails for a reason that the way can have
    caused switches to the other way: a single failure can have been chance.

    Attributes:
        attempt: how often the way was switched. Even numbers stand for the changed start, odd ones
            for Ray Train's own. A share remembers the number that it was started with.
    """

    def __init__(self) -> None:
        self.attempt = 0
        self._works = False

    @property
    def is_plain(self) -> bool:
        """Whether to start workers as Ray Train does, without any change."""
        return self.attempt % 2 == 1

    def round_committed(self, attempt: int) -> None:
        """Keep to the way of this attempt, the first to come to a round."""
        if not self._works:
            self.attempt, self._works = attempt, True

    def share_failed(self, attempt: int) -> bool:
        """Switch, if a share of the present attempt failed. Return whether that switched.

        Shares that were started together fail together, and only the first of them switches.
        """
        switches = not self._works and attempt == self.attempt
        self.attempt += switches
        return switches

    def excuses(self, attempt: int) -> bool:
        """Return whether a failure in this attempt says nothing about the share's folds.

        Only the first attempt excuses. Otherwise a fold that ends every worker in its first round
        would be tried for ever.
        """
        return not self._works and attempt == 0
