"""MLflow by its overlay."""

import os
import sqlite3
import sys
from types import SimpleNamespace

import pytest
from bundle_runs import config_files, losses, run, training
from monai.bundle import ConfigParser

from scripts.training import require_mlflow


def test_the_overlay_adds_a_handler_to_training_and_one_to_validation():
    plain, tracked = ConfigParser(), ConfigParser()
    plain.read_config(config_files("train"))
    tracked.read_config(config_files("train", "mlflow"))
    for part in ("train", "validate"):
        before, after = plain[part]["handlers"], tracked[part]["handlers"]
        assert after[:-1] == before and after[-1]["_target_"] == "MLFlowHandler"


def test_mlflow_reports_its_use_to_nobody(monkeypatch):
    """Set in `initialize`, before the first call of MLflow; what the user has set stays."""
    config = ConfigParser()
    config.read_config(config_files("train", "mlflow"))
    for before, after in ((None, "true"), ("false", "false")):
        monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
        if before:
            monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", before)
        config.parse(reset=True)
        config.get_parsed_content("initialize")
        assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == after
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY")


@pytest.mark.parametrize(
    ("uri", "answer", "facts"),
    [
        ("http://localhost:9", OSError("refused\nand more"), ["http://localhost:9", "refused"]),
        ("mlruns", None, ["mlruns is neither a server", "nor a database"]),
        ("file:///tmp/mlruns", None, ["is neither a server"]),
        ("http://localhost:9", None, []),
        ("sqlite:///not/there/yet.db", OSError("is not asked"), []),
    ],
)
def test_a_server_that_does_not_answer_is_one_line_before_the_run(uri, answer, facts, monkeypatch, one_line):
    asked = []

    class Client(SimpleNamespace):
        def search_experiments(self, max_results):
            asked.append(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"])
            if answer is not None:
                raise answer

    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=lambda uri: Client()))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    if facts:
        with pytest.raises(ValueError) as raised:
            require_mlflow(uri)
        one_line(raised, "tracking_uri", *facts)
    else:
        require_mlflow(uri)
    assert asked == ["10"] * uri.startswith("http") and "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ


@pytest.mark.slow
def test_mlflow_records_what_the_csv_does(tmp_path):
    pytest.importorskip("mlflow")
    stack, settings = training(1, tmp_path, max_epochs=2)
    run("training", [*stack, "mlflow"], **settings)
    with sqlite3.connect(tmp_path / "ckpt" / "logs" / "mlruns.db") as database:
        steps = dict(database.execute("select key, count(*) from metrics group by key"))
        found = database.execute("select value from metrics where key = 'val_loss' order by step").fetchall()
        assert database.execute("select name, status from runs").fetchall() == [("local", "FINISHED")]
    assert steps["loss"] == steps["noise"] == steps["signal"] == 4
    assert [value for (value,) in found] == pytest.approx(
        [float(row["val_loss"]) for row in losses(tmp_path)], abs=1e-5
    )


def test_what_mlflow_lacks_is_said(monkeypatch, one_line):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ValueError) as raised:
        require_mlflow("sqlite:///x.db")
    one_line(raised, "mlflow.yaml needs the package mlflow", "pip install mlflow")
