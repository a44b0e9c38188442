"""From batches to a checkpoint; uses neither data nor a particular model: objects are handed in."""

import warnings

# what Lightning says to itself, or of a checkpoint folder that is meant to hold checkpoints
warnings.filterwarnings(
    "ignore", message=".*LeafSpec.*|Checkpoint directory .* exists|.*smaller than the logging interval"
)
