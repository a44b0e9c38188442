"""From batches to a checkpoint; uses neither data nor a particular model: objects are handed in."""
