"""The environment of a command as a user's shell has it, without what tests set for themselves."""

from __future__ import annotations

import os

from support.paths import BIN


def users_environment(**variables: str) -> dict[str, str]:
    """This process's environment with the installed commands on the PATH, and ``variables``."""
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **variables}
    for name in ("OMP_NUM_THREADS", "RAY_ADDRESS"):
        environment.pop(name, None)
    return environment
