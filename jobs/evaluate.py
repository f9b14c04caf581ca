"""`ray job submit --working-dir . -- python -m jobs.evaluate RECIPE`: the command `routerretriever evaluate`."""

from routerretriever.cli import main_for

if __name__ == "__main__":
    main_for("evaluate")
