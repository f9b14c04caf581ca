"""Resources and bounds of deployments."""

from __future__ import annotations

import os
from typing import Any

from ray import serve

from routerretriever.config.serving import ReplicaSettings


def sized(deployment: Any, name: str, replicas: ReplicaSettings) -> Any:
    """A deployment with its resources and bounds."""
    return deployment.options(
        name=name,
        ray_actor_options={
            "num_cpus": replicas.cpus,
            "num_gpus": replicas.gpus,
            **({"label_selector": dict(replicas.labels)} if replicas.labels else {}),
            # One thread for each CPU asked for: more would only wait for each other.
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(max(1, round(replicas.cpus)))}},
        },
        autoscaling_config={
            "min_replicas": replicas.min_replicas,
            "max_replicas": replicas.max_replicas,
            "target_ongoing_requests": replicas.target_ongoing_requests,
            "upscale_delay_s": replicas.upscale_delay_seconds,
            "downscale_delay_s": replicas.downscale_delay_seconds,
        },
        max_ongoing_requests=_MANY,
        health_check_period_s=5,
        graceful_shutdown_timeout_s=35,
    )


_MANY = 10_000
"""Ray's own bound on calls to a replica: ours, on queries, comes first and says when to try again."""


def replica_id() -> str:
    """Name of this replica among all."""
    return f"{serve.get_replica_context().replica_id.unique_id}-{os.getpid()}"
