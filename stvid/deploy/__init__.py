"""A trained model at work: long videos, streams, annotated video."""
