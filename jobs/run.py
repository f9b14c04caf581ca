"""`routerretriever run` as a job: `ray job submit --working-dir . -- python -m jobs.run RECIPE`."""

from routerretriever.cli.main import main_for

if __name__ == "__main__":
    main_for("run")
