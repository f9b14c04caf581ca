"""`routerretriever learn` as a job: `ray job submit --working-dir . -- python -m jobs.learn RECIPE`."""

from routerretriever.cli.main import main_for

if __name__ == "__main__":
    main_for("learn")
