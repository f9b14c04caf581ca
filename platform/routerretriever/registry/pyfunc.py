"""Bundle and expert as MLflow pyfuncs: queries in, vectors out.

Queries come as a list, or as a table with a column ``text``. ``predict`` is annotated with the table alone,
as MLflow warns of models without an annotation and checks inputs by most others.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

import routerretriever
from routerretriever.bundle.model import RouterRetriever
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.errors import BadInput
from routerretriever.types import Vectors

INPUT_EXAMPLE = ["what causes scurvy", "how do vaccines work"]


class BundleModel(mlflow.pyfunc.PythonModel):
    """``predict(["a query", ...])`` gives one vector per query: [B, d] float32."""

    def load_context(self, context: Any) -> None:
        """Load the bundle from the model's artifacts."""
        self._bundle = RouterRetriever(Path(context.artifacts["bundle"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Vectors:
        """Route and embed queries: [B, d].

        Raises:
            BadInput: the input is neither a list of texts nor a table with a column ``text``.
        """
        return self._bundle.encode_queries(texts_of(model_input))


class ExpertModel(mlflow.pyfunc.PythonModel):
    """The same for one expert: every query is embedded by its adapter."""

    def load_context(self, context: Any) -> None:
        """Load the base encoder, and the adapter from the model's artifacts."""
        from routerretriever.adapters.tower import load_tower

        folder = Path(context.artifacts["expert"])
        card = json.loads((folder / "artifact.json").read_text(encoding="utf-8"))
        self._tower = load_tower(EncoderSettings.model_validate(card["encoder"]))
        self._tower.load_adapter("expert", folder)

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Vectors:
        """Embed queries: [B, d].

        Raises:
            BadInput: the input is neither a list of texts nor a table with a column ``text``.
        """
        return self._tower.encode_queries(texts_of(model_input), "expert")


def texts_of(model_input: Any) -> list[str]:
    """The queries of what a caller of a pyfunc gave.

    Raises:
        BadInput: it is neither a text, nor a list of texts, nor a table with a column ``text``.
    """
    columns = getattr(model_input, "columns", None)
    if columns is not None:
        if "text" in columns:
            model_input = model_input["text"]
        elif list(columns) == [0]:  # MLflow's server makes such a table of a plain list
            model_input = model_input[0]
        else:
            found = ", ".join(map(str, columns))
            raise BadInput(
                f"model input: no column 'text' (found: {found}); call the column of queries 'text'"
            )
    texts = [model_input] if isinstance(model_input, str) else list(model_input)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise BadInput(
                f"model input, row {row}: found {type(text).__name__}, expected text; give a list of texts "
                "or a table with a column 'text'"
            )
    return texts


def log_model(
    client: MlflowClient,
    experiment: str,
    run: str,
    name: str,
    model: mlflow.pyfunc.PythonModel,
    artifacts: Mapping[str, Path],
    scratch: Path,
) -> LoggedModel:
    """Log a pyfunc as a model of a run, without touching MLflow's global state.

    Args:
        client: of the store.
        experiment: its id.
        run: its id.
        name: what the model is called among the run's.
        model: reads ``artifacts``.
        artifacts: folders by name.
        scratch: an empty folder.
    """
    logged = client.create_logged_model(experiment, name=name, source_run_id=run, model_type="retriever")
    target = scratch / "model"
    mlflow.pyfunc.save_model(
        str(target),
        python_model=model,
        artifacts={key: str(_named(key, folder, scratch)) for key, folder in artifacts.items()},
        pip_requirements=[f"routerretriever=={routerretriever.__version__}"],
        # No inputs: MLflow's check of them would refuse either lists or tables.
        signature=ModelSignature(outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, -1))])),
        input_example=INPUT_EXAMPLE,
        mlflow_model=Model(artifact_path=logged.artifact_location, run_id=run, model_id=logged.model_id),
    )
    client.log_model_artifacts(logged.model_id, str(target))
    return client.finalize_logged_model(logged.model_id, "READY")


def _named(name: str, folder: Path, scratch: Path) -> Path:
    """The folder, or a copy: MLflow keeps an artifact under its folder's name, by which it is found again."""
    return folder if folder.name == name else Path(shutil.copytree(folder, scratch / name))
