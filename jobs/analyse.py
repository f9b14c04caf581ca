"""`routerretriever analyse` as a job: `ray job submit --working-dir . -- python -m jobs.analyse RECIPE`."""

from routerretriever.cli.main import main_for

if __name__ == "__main__":
    main_for("analyse")
