"""The bundle as an MLflow pyfunc: a list of queries, or a table with a column ``text``, in; vectors out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

import routerretriever
from routerretriever.bundle.model import RouterRetriever
from routerretriever.errors import BadInput

INPUT_EXAMPLE = ["what causes scurvy", "how do vaccines work"]


class BundleModel(mlflow.pyfunc.PythonModel):
    """``predict(["a query", ...])`` gives one vector per query: [B, d] float32."""

    def load_context(self, context: Any) -> None:
        """Load the bundle from the model's artifacts."""
        self._bundle = RouterRetriever(Path(context.artifacts["bundle"]))

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Route and embed queries: [B, d].

        Raises:
            BadInput: the input is neither a list of texts nor a table with a column ``text``.
        """
        return self._bundle.encode_queries(texts_of(model_input))


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


def log_bundle(client: MlflowClient, experiment: str, run: str, folder: Path, scratch: Path) -> LoggedModel:
    """Log a bundle's folder as a model of a run, without touching MLflow's global state."""
    logged = client.create_logged_model(experiment, name="bundle", source_run_id=run, model_type="retriever")
    target = scratch / "model"
    mlflow.pyfunc.save_model(
        str(target),
        python_model=BundleModel(),
        artifacts={"bundle": str(folder)},
        pip_requirements=[f"routerretriever=={routerretriever.__version__}"],
        # No inputs: MLflow's check of them would refuse either lists or tables.
        signature=ModelSignature(outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, -1))])),
        mlflow_model=Model(artifact_path=logged.artifact_location, run_id=run, model_id=logged.model_id),
        metadata={"input_example": INPUT_EXAMPLE},
    )
    client.log_model_artifacts(logged.model_id, str(target))
    return client.finalize_logged_model(logged.model_id, "READY")
