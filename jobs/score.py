"""`ray job submit --working-dir . -- python -m jobs.score RECIPE`: the command `routerretriever score`."""

from routerretriever.cli import main_for

if __name__ == "__main__":
    main_for("score")
