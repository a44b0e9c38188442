"""Pixels in and out of video files; knows nothing of learning."""
