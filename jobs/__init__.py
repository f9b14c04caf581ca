"""Entry points for `ray job submit`: each runs one step of a recipe, as the command line does."""
