"""The stage of the built-in data set: figures, what they do, and the rooms and cameras they are filmed with."""
