"""Ways to train and combine experts."""
