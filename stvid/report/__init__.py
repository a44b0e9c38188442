"""HTML pages about a run, an evaluation, or several side by side."""
