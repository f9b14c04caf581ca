"""`ray job submit --working-dir . -- python -m jobs.run RECIPE`: the command `routerretriever run`."""

from routerretriever.cli import main_for

if __name__ == "__main__":
    main_for("run")
