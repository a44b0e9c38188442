"""From video files to batches of clips; knows nothing of models."""
