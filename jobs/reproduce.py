"""`routerretriever reproduce` as a job: `ray job submit --working-dir . -- python -m jobs.reproduce FILE`."""

from routerretriever.cli.main import main_for

if __name__ == "__main__":
    main_for("reproduce")
