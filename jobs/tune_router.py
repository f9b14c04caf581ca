"""`routerretriever tune-router`: `ray job submit --working-dir . -- python -m jobs.tune_router RECIPE`."""

from routerretriever.cli.main import main_for

if __name__ == "__main__":
    main_for("tune-router")
