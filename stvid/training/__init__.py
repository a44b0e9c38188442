"""From batches to a checkpoint; uses neither data nor a particular model: objects are handed in."""

import warnings

EXPECTED_WARNINGS = (  # of Lightning
    ".*LeafSpec.*",
    "Checkpoint directory .* exists",  # resumed runs write there again
    ".*smaller than the logging interval",
    "Found .* in eval mode",  # frozen stages
    "You're resuming from a checkpoint that ended before",  # our own loader starts at the right batch
    ".*WeightAveraging callback with a model that overrides",  # for FSDP only, which has no average
    "It is recommended to use .*sync_dist",  # all processes have the same number already
)


def ignore_expected_warnings() -> None:
    """Hides warnings of Lightning that do not apply to stvid's training; in the whole process, so programs call it."""
    warnings.filterwarnings("ignore", message="|".join(EXPECTED_WARNINGS))
