"""Deep mutual learning from a dictionary of settings (arXiv:1706.00384)."""

import json
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import torch
from torch import optim
from tqdm.auto import tqdm

from edkd.dataset.external import external_dataset
from edkd.dataset.inspection import dataset_classes
from edkd.dataset.sampling import seed_for
from edkd.engine.checkpoint import save_checkpoint, save_text
from edkd.engine.device import as_current_gpu, pick_device
from edkd.engine.log.tensorboard import Curves
from edkd.engine.run_name import portable
from edkd.errors import UserError
from edkd.notebook._loop import make_folder
from edkd.notebook._run import Epoch, train_together, unused_folder
from edkd.notebook.image_folders import prepare_dataloaders
from edkd.notebook.model_files import (
    RUNS,
    build_model,
    checkpoint_of,
    keep_for_best,
    read_file_to_resume,
    refuse_used_name,
    restore_run,
)
from edkd.notebook.passes import evaluate_dml_models
from edkd.notebook.settings import create_dml_config, network_names


def train_dml(
    config: dict[str, Any] | None = None,
    train_loader: Iterable[Any] | None = None,
    val_loader: Iterable[Any] | None = None,
    test_loader: Iterable[Any] | None = None,
) -> dict[str, Any]:
    """Train `model_num` models that learn from one another, with `edkd.distill`.

    Its run folder is `<save_dir>/runs/<experiment>`. Each model has the files
    `<save_dir>/<experiment>_model<i>_<tag>.pth`, with i from 1 and the tags best, final and
    epoch_<n>. `resume` continues after the epoch of any of them, and ends bit-for-bit as a run that
    was not stopped.

    Args:
        config: the settings that differ from DEFAULT_CONFIG.
        train_loader: yields (images, targets); default: the loaders of `prepare_dataloaders`.
        val_loader: the same; evaluated after each epoch.
        test_loader: the same; evaluated at the end.

    Returns:
        models, best_accuracies (percent, on the validation set), avg_best_accuracy,
        training_history, test_results (None without a test set; with those of the ensemble),
        config, experiment_name.

    Raises:
        UserError: a setting, a loader or a file cannot be used, or the experiment exists already.
        NonFiniteError: a loss or a gradient is not finite.
    """
    config = create_dml_config(**(config or {}))
    if train_loader is None:
        train_loader, *others = prepare_dataloaders(
            config["data_dir"], config["batch_size"], config["augment"], config["num_workers"]
        )
        val_loader = val_loader or others[0]
        test_loader = test_loader or others[1]
    if val_loader is None:
        raise UserError("train_dml needs a val_loader beside the train_loader")

    data = _described(train_loader)
    config["num_classes"] = config["num_classes"] or len(data["classes"])
    if not config["num_classes"]:
        raise UserError("the training set names no classes; give num_classes")
    with as_current_gpu(config["device"]):
        return Experiment(config, data).train(train_loader, val_loader, test_loader)


class Experiment:
    """The models of a configuration, and the files that `train_dml` writes.

    Args:
        config: complete, see `create_dml_config`.
        data: facts about the training set, by which a resumed run recognises it.
    """

    def __init__(self, config: dict[str, Any], data: dict[str, Any]) -> None:
        self.config = config
        self.data = data
        self.device = pick_device(config["device"])
        self.save_dir = Path(config["save_dir"])
        self.log_dir = Path(config["log_dir"])
        self.history: list[dict[str, Any]] = []
        self.writer: Any = None
        self.first_number = 1
        self.checkpoint: dict[str, Any] | None = None

        # Models and optimizers.
        torch.manual_seed(seed_for(config["seed"], 0))
        self.networks = network_names(config)
        self.models = [build_model(name, config["num_classes"]) for name in self.networks]
        options = {name: config[name] for name in ("lr", "momentum", "weight_decay")}
        self.optimizers = [optim.SGD(model.parameters(), **options) for model in self.models]

        # The epochs after which the learning rate falls.
        step = config["step_size"]
        self.stages = list(range(step, config["epochs"], step))

        # The run folder, and what it has already.
        if config["resume"]:
            self._resume(Path(config["resume"]))
        else:
            self._start()

    def _start(self) -> None:
        config = self.config
        now = time.strftime("%Y%m%d_%H%M%S")
        networks = "+".join(dict.fromkeys(self.networks))
        self.name = portable(config["experiment_name"] or f"dml_{networks}_{now}")
        self.run = unused_folder(self.save_dir / RUNS, self.name)

        summary = self._summary_file()
        if summary.exists():
            raise UserError(
                f"{summary} exists already; resume that experiment, or give another experiment_name"
            )
        refuse_used_name(self.save_dir, self.name)

    def _resume(self, path: Path) -> None:
        """Take over the name and the history of a file, and the engine's run beside it."""
        state = read_file_to_resume(path, self.config, self.data)
        self.name = state["experiment"]
        self.history = state["training_history"]
        self.first_number = state["first_number"]
        tqdm.write(
            f"resume: {path.name} was written after epoch {state['epoch']}; it goes on there"
        )

        self.checkpoint = checkpoint_of(path.parent / RUNS / state["run"], state["epoch"])
        self.run = self.save_dir / RUNS / state["run"]
        if self.save_dir.absolute() != path.parent.absolute():
            refuse_used_name(self.save_dir, self.name)
            self.run = unused_folder(self.save_dir / RUNS, self.name)

    def train(
        self, train_loader: Iterable[Any], val_loader: Iterable[Any], test_loader: Any
    ) -> dict[str, Any]:
        """Run the epochs that are left, evaluate on the test set, write the summary."""
        if self.checkpoint:
            self._check(train_loader, val_loader, test_loader)
        for folder in (self.save_dir, self.log_dir):
            make_folder(folder)

        if self.checkpoint:
            restore_run(self.run, self.checkpoint, self.stages)
            self.checkpoint = None  # frees its memory
        done = len(self.history)

        with closing(Curves(self.log_dir / self.name, done)) as self.writer:
            train_together(
                self.models,
                self.optimizers,
                (train_loader, val_loader),
                self.run,
                self.config["epochs"],
                self._finish_epoch,
                resume=done > 0,
                device=self.device,
                num_classes=self.config["num_classes"],
                **self._settings(),
            )
        self._save_models("final", range(len(self.models)))

        # Results.
        best = self._best_accuracies()
        summary = {
            "best_accuracies": best,
            "avg_best_accuracy": sum(best) / len(best),
            "training_history": self.history,
            "test_results": self._test(test_loader) if test_loader is not None else None,
            "config": self.config,
            "experiment_name": self.name,
        }
        self._save_summary(summary)
        return {"models": self.models} | summary

    def _check(self, train_loader: Any, val_loader: Any, test_loader: Any) -> None:
        """Raise UserError if a loader cannot be used, before a file of the run is replaced."""
        external_dataset(
            train_loader,
            val_loader,
            test_loader,
            num_classes=self.config["num_classes"],
            device=self.device,
            seed=self.config["seed"],
        )

    def _settings(self) -> dict[str, Any]:
        """The settings as configuration keys."""
        config = self.config
        return {
            "SOLVER.SEED": config["seed"],
            "SOLVER.LR": config["lr"],
            "SOLVER.MOMENTUM": config["momentum"],
            "SOLVER.WEIGHT_DECAY": config["weight_decay"],
            "SOLVER.LR_DECAY_STAGES": self.stages,
            "SOLVER.LR_DECAY_RATE": config["gamma"],
            "LOG.SAVE_CHECKPOINT_FREQ": config["save_freq"],
        }

    def _finish_epoch(self, epoch: Epoch) -> None:
        """Write what is written after each epoch."""
        config = self.config
        before = self._best_accuracies()
        rows = [_row(i, figures) for i, figures in enumerate(epoch.students)]
        ensemble = {"val_loss": epoch.ensemble_loss, "val_acc": epoch.ensemble_top1}
        self.history.append(
            {"epoch": epoch.number, "lr": epoch.lr, "models": rows, "ensemble": ensemble}
        )

        # Checkpoints, and the summary so far.
        improved = [i for i, row in enumerate(rows) if row["val_acc"] > before[i]]
        self._save_models("best", improved)
        for i in improved:
            keep_for_best(self.run, self.first_number + i)
        if config["save_freq"] and epoch.number % config["save_freq"] == 0:
            self._save_models(f"epoch_{epoch.number}", range(len(rows)))
        self._save_summary({"training_history": self.history, "config": config})

        self._write_curves(self.history[-1])
        self._log_epoch(self.history[-1])

    def _write_curves(self, record: dict[str, Any]) -> None:
        """The points of an epoch for TensorBoard."""
        epoch = record["epoch"]
        self.writer.add_scalar("lr", record["lr"], epoch)
        for name, value in record["ensemble"].items():
            self.writer.add_scalar(f"ensemble/{name}", value, epoch)
        for number, row in enumerate(record["models"], 1):
            for name in ("train_loss", "train_acc", "val_loss", "val_acc"):
                self.writer.add_scalar(f"model{number}/{name}", row[name], epoch)

    def _log_epoch(self, record: dict[str, Any]) -> None:
        """A line in the log, and on the screen where one is due."""
        epoch = record["epoch"]
        epochs = self.config["epochs"]
        accuracies = ", ".join(f"{row['val_acc']:.2f}" for row in record["models"])
        together = f"{record['ensemble']['val_acc']:.2f}"
        lr = f"{record['lr']:.4g}"
        line = f"epoch {epoch}/{epochs}: lr {lr}, accuracies {accuracies}, ensemble {together} %"

        if epoch % self.config["print_freq"] == 0 or epoch in (1, epochs):
            tqdm.write(line)
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        with (
            suppress(OSError),  # a full disk must not end a training
            open(self.log_dir / f"{self.name}.log", "a", encoding="utf-8") as file,
        ):
            file.write(f"{now} {line}\n")

    def _best_accuracies(self) -> list[float]:
        """The highest accuracy of each model; -1 before the first epoch."""
        best = [-1.0] * len(self.models)
        for record in self.history:
            reached = [row["val_acc"] for row in record["models"]]
            best = [max(pair) for pair in zip(best, reached, strict=True)]
        return best

    def _test(self, loader: Iterable[Any]) -> dict[str, Any]:
        """Figures of the models and of their ensemble, with the last weights, on the test set."""
        *rows, ensemble = evaluate_dml_models(self.models, loader, self.device, self.config)
        reached = [row["accuracy"] for row in rows]
        return {
            "test_losses": [row["loss"] for row in rows],
            "test_accs": reached,
            "avg_test_acc": sum(reached) / len(reached),
            "ensemble_test_loss": ensemble["loss"],
            "ensemble_test_acc": ensemble["accuracy"],
        }

    def _save_models(self, tag: str, numbers: Iterable[int]) -> None:
        """Write <experiment>_model<i>_<tag>.pth for some models, whose numbers begin with 0."""
        best = self._best_accuracies()
        for i in numbers:
            content = {
                "epoch": len(self.history),
                "network": self.networks[i],
                "model_state_dict": self.models[i].state_dict(),
                "optimizer_state_dict": self.optimizers[i].state_dict(),
                "best_acc": best[i],
                "config": self.config,
                "training_history": self.history,
                "data": self.data,
                "run": self.run.name,
            }
            number = self.first_number + i
            save_checkpoint(content, self.save_dir / f"{self.name}_model{number}_{tag}.pth")

    def _save_summary(self, summary: dict[str, Any]) -> None:
        save_text(json.dumps(summary, indent=1, default=str) + "\n", self._summary_file())

    def _summary_file(self) -> Path:
        return self.log_dir / f"{self.name}_summary.json"


def _row(number: int, figures: dict[str, float]) -> dict[str, Any]:
    """The figures of a model in an epoch, under their documented names."""
    return {
        "model_idx": number,
        "train_loss": figures["loss"],
        "train_acc": figures["top1"],
        "val_loss": figures["test_loss"],
        "val_acc": figures["test_top1"],
    }


def _described(loader: Any) -> dict[str, Any]:
    """The number of images and the class names of a loader's data set."""
    dataset: Any = getattr(loader, "dataset", None)
    images = len(dataset) if hasattr(dataset, "__len__") else None
    return {"images": images, "classes": list(dataset_classes(dataset))}
