"""Layouts of data sets on disk: one file per layout, each with a function `root -> Manifest`."""
