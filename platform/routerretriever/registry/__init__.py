"""MLflow: experts and bundles as model versions; releases are moves of an alias."""
