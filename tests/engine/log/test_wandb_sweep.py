"""configs/wandb/sweep.yaml: the command that wandb's own agent builds trains, without a network."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml

from edkd.engine.config.load import load_config
from edkd.models import get_model
from tests.conftest import CHECKOUT
from tests.engine.log.read_logs import wandb_run
from tests.runs import records

SWEEP = CHECKOUT / "configs" / "wandb" / "sweep.yaml"

DRAWN = {"KD.TEMPERATURE": 3.217, "KD.LOSS.KD_WEIGHT": 1.5e-05, "SOLVER.LR": 0.05}
"""What a server could send for the parameters."""


@pytest.fixture
def agent_command(monkeypatch, tmp_path):
    """The command that the agent of wandb starts for DRAWN; its process is not started."""
    from wandb import wandb_agent

    started = []
    monkeypatch.setattr(
        wandb_agent, "AgentProcess", lambda **options: started.append(options) or SimpleNamespace()
    )
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):  # the agent sets them
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")

    sweep = yaml.safe_load(SWEEP.read_text())
    agent = object.__new__(wandb_agent.Agent)  # the constructor asks the server
    agent._sweep_command = sweep["command"]
    agent._function = None
    agent._in_jupyter = False
    agent._forward_signals = False
    agent._run_processes = {}
    args = {key: {"value": value} for key, value in DRAWN.items()}
    agent._command_run({"run_id": "run1", "program": sweep["program"], "args": args})
    (options,) = started
    return options["command"]


def test_the_command_is_one_of_ours(agent_command):
    sweep = yaml.safe_load(SWEEP.read_text())
    assert set(DRAWN) == set(sweep["parameters"])
    words = agent_command[agent_command.index("tools/train.py") :]
    assert words[1:3] == ["--cfg", "configs/digits/kd/res20_res8.yaml"]

    cfg = load_config(words[2], words[3:])
    assert cfg.KD.TEMPERATURE == 3.217
    assert cfg.KD.LOSS.KD_WEIGHT == 1.5e-05
    assert cfg.SOLVER.LR == 0.05
    assert cfg.LOG.WANDB is True
    assert cfg.DATASET.VAL_SPLIT == 0.1


def test_each_value_of_the_file_is_allowed():
    """Both ends of each range, and each choice."""
    sweep = yaml.safe_load(SWEEP.read_text())
    for key, about in sweep["parameters"].items():
        for value in about.get("values", [about.get("min"), about.get("max")]):
            load_config("configs/digits/kd/res20_res8.yaml", [f"{key}={value}"])


@pytest.mark.slow
def test_the_command_trains_and_logs_the_metric_of_the_sweep(agent_command, tmp_path):
    """One epoch with a teacher that was never trained; wandb records offline."""
    teacher = tmp_path / "teacher"
    torch.save({"model": get_model("cifar", "resnet20", 10).state_dict()}, teacher)
    options = [f"DISTILLER.TEACHER_CKPT={teacher}", "SOLVER.EPOCHS=1", f"LOG.PREFIX={tmp_path}"]
    place = os.path.dirname(sys.executable)
    environment = {
        **os.environ,
        "WANDB_MODE": "offline",
        "WANDB_RUN_ID": "run1",
        "PATH": f"{place}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [*agent_command, *options],
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr

    (run,) = (tmp_path / "digits").iterdir()
    logged = wandb_run(run)
    metric = yaml.safe_load(SWEEP.read_text())["metric"]["name"]
    assert [row[metric] for _, row in logged.rows if metric in row] == [records(run)[0]["val_top1"]]
    assert logged.id == "run1", "the run is not that of the sweep"
    assert {key: logged.config[key] for key in DRAWN} == DRAWN
    assert "last_test_top1" not in json.loads((run / "result.json").read_text())
