"""MLflow's server, asked before a run that would log to it."""

from __future__ import annotations

import os

from monai.utils import optional_import

_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}  # MLflow waits for minutes


def require_mlflow(tracking_uri: str) -> None:
    """Refuses a server that does not answer, before any data is loaded; a database is opened by the run alone.

    Args:
        tracking_uri: of the server or database; the environment's MLFLOW_TRACKING_URI goes before it, as in MLflow.

    Raises:
        ValueError: in one line, where MLflow is not installed, too.
    """
    mlflow, installed = optional_import("mlflow")
    if not installed:
        raise ValueError("mlflow.yaml needs the package mlflow, which is not installed: pip install mlflow")
    client = mlflow.MlflowClient
    uri = os.environ.get("MLFLOW_TRACKING_URI") or tracking_uri
    if "://" not in uri or uri.startswith("file:"):
        raise ValueError(f"tracking_uri {uri} is neither a server (http://...) nor a database (sqlite:///...)")
    if not uri.startswith("http"):
        return
    before = {name: os.environ.get(name) for name in _PATIENCE}
    os.environ.update({name: value for name, value in _PATIENCE.items() if before[name] is None})
    try:
        client(uri).search_experiments(max_results=1)
    except Exception as error:  # of MLflow, or of what it asks with
        raise ValueError(f"tracking_uri {uri}: no MLflow answers ({str(error).splitlines()[0][:300]})") from None
    finally:
        for name in (name for name, value in before.items() if value is None):
            del os.environ[name]
