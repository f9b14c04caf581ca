"""`routerretriever tune-training`: `ray job submit ... -- python -m jobs.tune_training RECIPE`."""

from routerretriever.cli.main import main_for

if __name__ == "__main__":
    main_for("tune-training")
