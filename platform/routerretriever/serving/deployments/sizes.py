"""Resources and bounds of deployments."""

from __future__ import annotations

import os
from typing import Any

from ray import serve

from routerretriever.config.serving import ReplicaSettings
from routerretriever.runtime.cluster import capacity
from routerretriever.runtime.ray_metrics import running_ray

_MOST_REPLICAS = 8
"""More are not started unasked: each holds the base."""
_MANY = 10_000
"""Ray's own bound on calls to a replica: ours, on queries, comes first and says when to try again."""


def sized(deployment: Any, name: str, replicas: ReplicaSettings, most: int | None = None) -> Any:
    """A deployment with its resources and bounds.

    Args:
        deployment: the class.
        name: of the deployment.
        replicas: what the recipe says.
        most: upper bound of autoscaling where the recipe has none; by default the lower one.
    """
    least = max(1, replicas.min_replicas)
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
            "max_replicas": replicas.max_replicas or max(least, most or 1),
            "target_ongoing_requests": replicas.target_ongoing_requests,
            "upscale_delay_s": replicas.upscale_delay_seconds,
            "downscale_delay_s": replicas.downscale_delay_seconds,
        },
        max_ongoing_requests=_MANY,
        health_check_period_s=5,
        graceful_shutdown_timeout_s=35,
    )


def room_for_replicas(replicas: ReplicaSettings) -> int:
    """How many replicas can be at work at once on the cluster as it is now; each uses a core at least."""
    if running_ray() is None:
        return 1  # as in `serve build`, which writes a file
    return min(capacity(max(1.0, replicas.cpus), replicas.gpus, replicas.labels), _MOST_REPLICAS)


def replica_id() -> str:
    """Name of this replica among all."""
    return f"{serve.get_replica_context().replica_id.unique_id}-{os.getpid()}"
