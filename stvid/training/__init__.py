"""From batches to a checkpoint; uses neither data nor a particular model: objects are handed in."""

import warnings

IDLE = (  # what Lightning says to itself
    ".*LeafSpec.*",
    "Checkpoint directory .* exists",  # it is meant to hold checkpoints
    ".*smaller than the logging interval",
    "Found .* in eval mode",  # frozen stages
    "You're resuming from a checkpoint that ended before",  # our own loader starts where it should
    ".*WeightAveraging callback with a model that overrides",  # for FSDP only, which has no average
    "It is recommended to use .*sync_dist",  # all processes have the same number already
)
warnings.filterwarnings("ignore", message="|".join(IDLE))
