"""The score table: every query scored with every expert."""
