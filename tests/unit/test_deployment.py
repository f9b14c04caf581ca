"""The files for clusters are what Ray's launcher, Serve and KubeRay take. None of them was launched."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
from ray.autoscaler._private.aws.config import DEFAULT_AMI
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve._private.deploy_utils import get_app_code_version
from ray.serve.schema import ServeDeploySchema
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.config.loading import load_recipe
from routerretriever.config.recipe import Recipe
from routerretriever.errors import NotFound, RecipeError
from routerretriever.serving.deployments import app
from routerretriever.serving.http.auth import is_loopback
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "serve_configs" / "kubernetes"


def read(path: Path) -> dict[str, Any]:
    return YAML(typ="safe", pure=True).load(path.read_text())


def locked(package: str) -> str:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    (version,) = (line.removeprefix(f"{package}==") for line in lines if line.startswith(f"{package}=="))
    return version


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster.gcp.yaml"])
def test_cluster_files_are_valid_to_rays_launcher(name):
    cluster = read(ROOT / name)
    validate_config(prepare_config(cluster))
    assert f":{locked('ray')}-py311" in cluster["docker"]["image"]
    with pytest.raises(jsonschema.ValidationError):
        validate_config({**prepare_config(read(ROOT / name)), "max_workers": "many"})


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster.gcp.yaml"])
def test_what_must_not_be_lost_is_never_on_spot(name):
    cluster = read(ROOT / name)
    for kind, node in cluster["available_node_types"].items():
        spot = re.search("spot", str(node["node_config"]), re.IGNORECASE) is not None
        assert spot == (kind in ("cpu", "gpu-train"))
        assert node["labels"]["ray.io/market-type"] == ("spot" if spot else "on-demand")
    assert cluster["available_node_types"][cluster["head_node_type"]]["resources"] == {"CPU": 0}


def images(node: dict[str, Any]) -> list[str]:
    """The machine images that a node type names, on AWS or Google Cloud."""
    config = node["node_config"]
    disks = [disk["initializeParams"].get("sourceImage") for disk in config.get("disks", [])]
    return [image for image in (config.get("ImageId"), *disks) if image]


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster.gcp.yaml"])
def test_every_machine_names_its_image_and_none_is_rays_own_old_one(name):
    kinds = read(ROOT / name)["available_node_types"]
    (image,) = {image for node in kinds.values() for image in images(node)}
    assert all(images(node) for node in kinds.values())
    assert image not in DEFAULT_AMI.values()
    # An id of ours would be of one region and soon old: EC2 refuses this one before anything starts.
    assert image == "ami-FILL-IN" or int(re.findall(r"nvidia-(\d+)$", image)[0]) >= 580


def fields(required: str = "", **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


# What is used here of KubeRay's types (ray-operator/apis/ray/v1) and of Kubernetes' pod template: an unknown
# field is an error, as it is to `kubectl apply`.
TEXT, COUNT, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}


def several(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


CONTAINER = fields(
    "name image resources",
    name=TEXT,
    image=TEXT,
    env=several(fields("name value", name=TEXT, value=TEXT)),
    envFrom=several(fields(secretRef=fields("name", name=TEXT, optional=FLAG))),
    resources=fields("limits requests", limits=TEXTS, requests=TEXTS),
    volumeMounts=several(fields("name mountPath", name=TEXT, mountPath=TEXT)),
)
TOLERATION = fields("key operator value effect", key=TEXT, operator=TEXT, value=TEXT, effect=TEXT)
POD = fields(
    "containers",
    containers=several(CONTAINER),
    nodeSelector=TEXTS,
    tolerations=several(TOLERATION),
    volumes=several(
        fields(
            "name",
            name=TEXT,
            configMap=fields("name", name=TEXT),
            secret=fields("secretName", secretName=TEXT),
        )
    ),
)
CLUSTER = fields(
    "headGroupSpec",
    rayVersion=TEXT,
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=fields(idleTimeoutSeconds=COUNT, upscalingMode=TEXT),
    headGroupSpec=fields("rayStartParams template", rayStartParams=TEXTS, template=fields("spec", spec=POD)),
    workerGroupSpecs=several(
        fields(
            "groupName minReplicas maxReplicas rayStartParams template",
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=TEXTS,
            template=fields("spec", spec=POD),
        )
    ),
)
JOB = fields(
    "entrypoint rayClusterSpec",
    entrypoint=TEXT,
    backoffLimit=COUNT,
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=COUNT,
    rayClusterSpec=CLUSTER,
)
SERVICE = fields("serveConfigV2 rayClusterConfig", serveConfigV2=TEXT, rayClusterConfig=CLUSTER)


@pytest.mark.parametrize(
    ("file", "kind", "spec"), [("job", "RayJob", JOB), ("service", "RayService", SERVICE)]
)
def test_kubernetes_files_are_valid_to_kuberay(file, kind, spec, tmp_path):
    found = read(KUBERNETES / f"{file}.yaml")
    whole = fields(
        "apiVersion kind metadata spec",
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=fields("name", name=TEXT),
        spec=spec,
    )
    jsonschema.validate(found, whole)
    cluster = found["spec"].get("rayClusterSpec") or found["spec"]["rayClusterConfig"]
    assert cluster["rayVersion"] == locked("ray")
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert "on-demand" in cluster["headGroupSpec"]["template"]["spec"]["nodeSelector"].values()
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        for container in pod["containers"]:
            assert container["image"] == f"routerretriever:{version[1]}"
            mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
            assert mounted <= {volume["name"] for volume in pod.get("volumes", [])}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**found, "spec": {**found["spec"], "entrypiont": "x"}}, whole)


def test_the_recipe_that_kubernetes_mounts_is_valid(tmp_path):
    config_map = read(KUBERNETES / "recipe.yaml")
    (name, text), *_ = config_map["data"].items()
    (tmp_path / name).write_text(text)
    recipe = load_recipe(tmp_path / name)
    assert recipe.registry.tracking_uri
    assert recipe.serving.tokens_file
    assert "://" in recipe.storage
    job, service = read(KUBERNETES / "job.yaml"), read(KUBERNETES / "service.yaml")
    for pod in (
        job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"],
        service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"],
    ):
        (volume,) = (volume for volume in pod["volumes"] if "configMap" in volume)
        assert volume["configMap"]["name"] == config_map["metadata"]["name"]
        path = f"{pod['containers'][0]['volumeMounts'][0]['mountPath']}/{name}"
        assert path in job["spec"]["entrypoint"]
        assert path in service["spec"]["serveConfigV2"]


def test_the_service_on_kubernetes_is_the_local_one(tmp_path):
    config = YAML(typ="safe", pure=True).load(read(KUBERNETES / "service.yaml")["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(config)
    local = read(ROOT / "serve_configs" / "local.yaml")
    assert [app["import_path"] for app in config["applications"]] == [
        app["import_path"] for app in local["applications"]
    ]


@pytest.mark.parametrize("name", ["local", "gpu", "cluster", "kubernetes"])
def test_a_serve_file_and_its_recipe_agree_on_who_may_ask(name, tmp_path):
    """Serve listens on the one's host, and the service asks for tokens by the other's."""
    if name == "kubernetes":
        config = YAML(typ="safe", pure=True).load(read(KUBERNETES / "service.yaml")["spec"]["serveConfigV2"])
        recipe_path = tmp_path / "recipe.yaml"
        recipe_path.write_text(read(KUBERNETES / "recipe.yaml")["data"]["recipe.yaml"])
    else:
        config = read(ROOT / "serve_configs" / f"{name}.yaml")
        recipe_path = ROOT / config["applications"][0]["args"]["recipe"]
    serving = load_recipe(recipe_path, config["applications"][0]["args"].get("set")).serving
    assert serving.host == config["http_options"]["host"]
    assert is_loopback(serving.host) == (serving.tokens_file is None)


def test_serve_builds_anew_only_what_has_another_revision():
    """Were it otherwise, the same Serve file would take up a changed recipe, and the pages were wrong."""

    def version(**args: Any) -> str:
        config = read(ROOT / "serve_configs" / "local.yaml")
        config["applications"][0]["args"] |= args
        return get_app_code_version(ServeDeploySchema.model_validate(config).applications[0])

    assert version() == version()
    assert version(revision=1) == version(revision=1)
    assert len({version(), version(revision=1), version(revision=2)}) == 3


def test_a_serve_file_may_have_a_revision_and_nothing_unknown(tmp_path, monkeypatch):
    built: list[Recipe] = []
    monkeypatch.setattr(app, "build_application", lambda recipe, store: built.append(recipe))
    own = [f"storage={tmp_path}", "serving.router.max_replicas=2"]
    app.build({"recipe": "sample", "set": own, "revision": 2})
    assert built[0].serving.router.max_replicas == 2
    with pytest.raises(RecipeError, match=r"Serve file: args.*\n.*sets: unknown key; did you mean set"):
        app.build({"recipe": "sample", "sets": own})
    with pytest.raises(RecipeError, match="recipe: missing"):
        app.build({})


def test_the_service_asks_for_tokens_where_serve_listens_for_others(tmp_path, monkeypatch):
    recipe = load_recipe("sample", [f"storage={tmp_path}"])
    store = ArtifactStore.open(str(tmp_path))
    serve = SimpleNamespace(http_config=SimpleNamespace(host="0.0.0.0"))
    monkeypatch.setattr(app.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(app, "_get_global_client", lambda raise_if_no_controller_running: serve)
    with pytest.raises(RecipeError, match=r"http_options\.host: 0\.0\.0\.0 lets other machines ask"):
        app.build_application(recipe, store)
    serve.http_config.host = "localhost"
    with pytest.raises(NotFound):  # the next thing that is looked at: nothing is released
        app.build_application(recipe, store)


def test_the_image_starts_from_the_locked_ray():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert f"FROM rayproject/ray:{locked('ray')}-py311-gpu" in lines
    for line in lines:
        if line.startswith("COPY"):
            assert all((ROOT / source).exists() for source in line.split()[2:-1])
