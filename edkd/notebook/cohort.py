"""Deep mutual learning of networks that you bring, in an interface known from KD_Lib."""

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn, optim
from tqdm.auto import tqdm

from edkd.engine.checkpoint import save_checkpoint
from edkd.engine.device import pick_device
from edkd.errors import UserError
from edkd.notebook._loop import Divergence, in_notebook, kl_from_peer, make_folder, measure, train_cohort


class DML:
    """Students that learn from the labels and from one another (arXiv:1706.00384), all at once in each batch.

    Args:
        student_cohort: two networks or more, which return logits or (logits, features).
        train_loader, test_loader: yield (images, targets).
        student_optimizers: one for each student.
        loss_fn: (logits of a student, logits of a peer) -> scalar; default: KL(p_peer || p_student).
        device: cpu, cuda, cuda:N, mps or auto.
        log: write scalars for TensorBoard.
        logdir: where to.

    Raises:
        UserError: fewer than two students, or another number of optimizers.
    """

    def __init__(
        self,
        student_cohort: Sequence[nn.Module],
        train_loader: Iterable[Any],
        test_loader: Iterable[Any],
        student_optimizers: Sequence[optim.Optimizer],
        loss_fn: Divergence = kl_from_peer,
        device: str | torch.device = "cpu",
        log: bool = False,
        logdir: str | Path = "./Experiments",
    ) -> None:
        if len(student_cohort) < 2:
            raise UserError(f"student_cohort holds {len(student_cohort)}, but it takes two to learn together")
        if len(student_optimizers) != len(student_cohort):
            raise UserError(f"{len(student_cohort)} students need as many optimizers, not {len(student_optimizers)}")
        self.student_cohort, self.student_optimizers = list(student_cohort), list(student_optimizers)
        self.train_loader, self.test_loader, self.loss_fn = train_loader, test_loader, loss_fn
        self.device, self.log, self.logdir = pick_device(str(device)), log, Path(logdir)
        self.history: list[list[dict[str, float]]] = []
        self.best_accuracy, self.best_student = -1.0, self.student_cohort[0]
        self.best_state: dict[str, torch.Tensor] = {}

    def train_students(
        self,
        epochs: int = 5,
        plot_losses: bool = True,
        save_model: bool = True,
        save_model_path: str | Path = "./models/student.pt",
    ) -> list[list[dict[str, float]]]:
        """Train; a second call goes on.

        Args:
            plot_losses: draw the losses into `losses.png` in `logdir`, and show that in a notebook.
            save_model: after each epoch, write the best weights so far, {"model": state_dict}, to `save_model_path`.

        Returns:
            For each epoch and student: loss, loss_ce, loss_kd and top1 of training, and test_loss, test_top1.
        """
        if plot_losses and not find_spec("matplotlib"):
            raise UserError("plot_losses needs matplotlib: pip install matplotlib, or give plot_losses=False")
        path = Path(save_model_path)
        if save_model and path.is_dir():
            raise UserError(f"save_model_path is {path}, a folder; name a file")
        if save_model:
            make_folder(path.parent)
        if plot_losses or self.log:
            make_folder(self.logdir)
        writer = self._writer()
        for epoch in range(len(self.history) + 1, len(self.history) + epochs + 1):
            trained = train_cohort(
                self.student_cohort,
                self.student_optimizers,
                self.train_loader,
                self.device,
                self.loss_fn,
                f"epoch {epoch}",
            )
            tested = measure(self.student_cohort, self.test_loader, self.device)
            record = [
                figures | {"test_loss": test["loss"], "test_top1": test["accuracy"]}
                for figures, test in zip(trained, tested, strict=False)
            ]
            self.history.append(record)
            for i, figures in enumerate(record):
                if figures["test_top1"] > self.best_accuracy:
                    self.best_accuracy, self.best_student = figures["test_top1"], self.student_cohort[i]
                    state = self.best_student.state_dict()
                    self.best_state = {key: value.detach().cpu().clone() for key, value in state.items()}
                for name, value in figures.items():
                    if writer:
                        writer.add_scalar(f"student{i + 1}/{name}", value, epoch)
            if save_model:
                save_checkpoint({"model": self.best_state}, path)
            accuracies = "  ".join(f"student {i + 1} {figures['test_top1']:.2f} %" for i, figures in enumerate(record))
            tqdm.write(f"epoch {epoch}: {accuracies}  ensemble {tested[-1]['accuracy']:.2f} %")
        if writer:
            writer.close()
        if plot_losses and self.history:
            self._plot()
        return self.history

    def evaluate(self) -> list[float]:
        """The accuracy in percent of each student on the test set."""
        accuracies = [
            figures["accuracy"] for figures in measure(self.student_cohort, self.test_loader, self.device)[:-1]
        ]
        for i, accuracy in enumerate(accuracies, 1):
            tqdm.write(f"student {i}: {accuracy:.2f} %")
        return accuracies

    def get_parameters(self) -> list[int]:
        """The number of parameters of each student."""
        sizes = [sum(p.numel() for p in student.parameters()) for student in self.student_cohort]
        for i, size in enumerate(sizes, 1):
            tqdm.write(f"student {i}: {size:,} parameters")
        return sizes

    def _writer(self) -> Any:
        if not self.log:
            return None
        from tensorboardX import SummaryWriter

        return SummaryWriter(str(self.logdir))

    def _plot(self) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        for i in range(len(self.student_cohort)):
            axes.plot(
                range(1, len(self.history) + 1),
                [record[i]["loss"] for record in self.history],
                label=f"student {i + 1}",
            )
        axes.set(xlabel="epoch", ylabel="training loss")
        axes.legend()
        figure.savefig(self.logdir / "losses.png")
        if in_notebook():
            from IPython.display import Image, display

            display(Image(filename=self.logdir / "losses.png"))
