"""What a class was mistaken for."""

from __future__ import annotations

from collections.abc import Sequence

MOST_NAMED = 3  # classes


def mistaken_for(truth: int, counts: Sequence[int], class_names: Sequence[str]) -> list[str]:
    """The answers that its videos got instead, most frequent first: `run (4)`, and at the end `2 more`.

    Args:
        truth: the class's position.
        counts: its row of the confusion matrix.
        class_names: by position.
    """
    wrong = sorted(((-number, answer) for answer, number in enumerate(counts) if number and answer != truth))
    more = [f"{len(wrong) - MOST_NAMED} more"] if len(wrong) > MOST_NAMED else []
    return [f"{class_names[answer]} ({-number})" for number, answer in wrong[:MOST_NAMED]] + more
