"""A trained model at work: long videos as windows and segments, live streams, annotated output."""
