"""A run: its folder, config, checkpoints, resuming, and provenance."""
