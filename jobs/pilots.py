"""`ray job submit --working-dir . -- python -m jobs.pilots RECIPE`: the command `routerretriever pilots`."""

from routerretriever.cli import main_for

if __name__ == "__main__":
    main_for("pilots")
