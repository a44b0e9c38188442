"""Known layouts of data sets on disk: one file a layout, each one function `root -> Manifest`."""
