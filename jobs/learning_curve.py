"""`routerretriever learning-curve`: `ray job submit ... -- python -m jobs.learning_curve RECIPE`."""

from routerretriever.cli.main import main_for

if __name__ == "__main__":
    main_for("learning-curve")
