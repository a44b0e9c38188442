"""HTML reports of a run or an evaluation, and comparison pages."""
