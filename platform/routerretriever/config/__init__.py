"""The recipe: one YAML file for a whole run, checked when it is read."""
