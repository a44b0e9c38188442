"""The page of a report: templates, style and script, and what they are filled with."""
