"""A run in wandb: online where credentials exist, otherwise recorded in the folder of the run."""

import importlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edkd.engine.checkpoint import save_text
from edkd.engine.log.background import Record, Sink
from edkd.engine.log.final import TABLE, Final

MAX_TAG = 64
"""Characters of a tag that wandb allows."""


class Wandb(Sink):
    """Logs to wandb; never prompts for anything.

    A resumed run continues the same run in wandb; its id is kept in `wandb/id`.

    Args:
        folder: of the run.
        cfg: EXPERIMENT is read.
        settings: hyper-parameters by full keys, the configuration of the run in wandb. A sweep of
            wandb gives its values by the same names.
        say: writes a line to the log; called where the run is recorded offline.
        library: the module wandb, imported here by default.
    """

    def __init__(
        self,
        folder: Path,
        cfg: Any,
        settings: Mapping[str, Any],
        say: Callable[[str], None],
        library: Any = None,
    ) -> None:
        wandb = library or importlib.import_module("wandb")
        self._library = wandb

        quiet = wandb.Settings(
            silent=True,
            init_timeout=10,
            finish_timeout=60,
            console="off",
            disable_git=True,
        )
        options = {**_description(folder, cfg, settings), "settings": quiet}
        wandb.setup(settings=quiet)

        # Without credentials, and without a server, the run is recorded offline.
        mode = os.environ.get("WANDB_MODE", "online")
        reason = f"WANDB_MODE is {mode}"
        try:
            if mode == "online" and not wandb.login(prompt=False, verify=False):
                mode = "offline"
                reason = "there are no credentials"
            self.run = wandb.init(mode=mode, **options)
        except wandb.errors.Error as error:
            mode = "offline"
            reason = f"the server cannot be reached ({_short(error)})"
            options["id"] = secrets.token_hex(8)  # the failed attempt occupies the first one
            self.run = wandb.init(mode=mode, **options)

        if mode == "offline":
            say(
                f"wandb: recorded offline in {folder / 'wandb'}, as {reason}; "
                "'wandb sync' uploads it later"
            )

    def send(self, figures: Record, step: int) -> None:
        """Log a row."""
        self.run.log(figures, step=step)

    def finish(self, final: Final) -> None:
        """Log the final figures, which the summary of the run shows, and their table."""
        table = self._library.Table(columns=final.columns, data=[final.row])
        self.run.log({**final.figures, TABLE: table}, step=final.step)

    def close(self) -> None:
        """End the run."""
        self.run.finish()


def _description(folder: Path, cfg: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What identifies and describes the run in wandb, as arguments of `wandb.init`."""
    tags = cfg.EXPERIMENT.TAG.split(",")
    return {
        "id": _run_id(folder),
        "resume": "allow",
        "project": cfg.EXPERIMENT.PROJECT or "edkd",
        "name": folder.name,
        "tags": [tag[:MAX_TAG] for tag in tags if tag],
        "dir": str(folder),
        "config": json.loads(json.dumps(settings)),
    }


def _run_id(folder: Path) -> str:
    """The id of the run, drawn by its first process."""
    file = folder / "wandb" / "id"
    if not file.is_file():
        file.parent.mkdir(exist_ok=True)
        save_text(secrets.token_hex(8), file)
    return file.read_text()


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:100]
