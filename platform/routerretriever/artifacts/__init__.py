"""Artifacts: folders of files, written once, found by the hash of what they were made from. No Ray here."""
