"""The built-in data set: figures, their motions, and the rooms and cameras with which they are rendered."""
