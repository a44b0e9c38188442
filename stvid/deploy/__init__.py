"""A trained model at work on files."""
