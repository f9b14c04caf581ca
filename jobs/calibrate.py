"""`routerretriever calibrate`: `ray job submit --working-dir . -- python -m jobs.calibrate RECIPE`."""

from routerretriever.cli.main import main_for

if __name__ == "__main__":
    main_for("calibrate")
