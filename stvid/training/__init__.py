"""From batches to a checkpoint; uses neither data nor a particular model: objects are handed in."""

import warnings

# what Lightning says to itself, of a checkpoint folder that is meant to hold checkpoints, or of frozen stages
IDLE = ".*LeafSpec.*|Checkpoint directory .* exists|.*smaller than the logging interval|Found .* in eval mode"
warnings.filterwarnings("ignore", message=IDLE)
