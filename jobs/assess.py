"""`routerretriever assess` as a job: `ray job submit --working-dir . -- python -m jobs.assess RECIPE`."""

from routerretriever.cli.main import main_for

if __name__ == "__main__":
    main_for("assess")
