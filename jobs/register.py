"""`ray job submit --working-dir . -- python -m jobs.register RECIPE`: the command `routerretriever register`."""

from routerretriever.cli import main_for

if __name__ == "__main__":
    main_for("register")
