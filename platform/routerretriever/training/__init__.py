"""Training one adapter on Ray Train."""
