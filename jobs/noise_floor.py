"""`routerretriever noise-floor`: `ray job submit --working-dir . -- python -m jobs.noise_floor RECIPE`."""

from routerretriever.cli.main import main_for

if __name__ == "__main__":
    main_for("noise-floor")
