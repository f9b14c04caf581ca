"""Studies of a finished run: analyses, tuning, reproduction."""
