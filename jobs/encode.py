"""`ray job submit --working-dir . -- python -m jobs.encode RECIPE`: the command `routerretriever encode`."""

from routerretriever.cli import main_for

if __name__ == "__main__":
    main_for("encode")
