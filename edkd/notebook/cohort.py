"""Deep mutual learning of the user's own networks, in an interface known from KD_Lib.

Y. Zhang, T. Xiang, T. M. Hospedales, H. Lu, "Deep Mutual Learning", CVPR 2018, arXiv:1706.00384.
"""

import shutil
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import nn, optim
from tqdm.auto import tqdm

from edkd.curves import Curve, figure_of, save_figure
from edkd.engine.checkpoint import save_checkpoint
from edkd.engine.device import as_current_gpu, pick_device
from edkd.engine.environment import in_notebook
from edkd.engine.log.tensorboard import Curves
from edkd.errors import UserError
from edkd.notebook._loop import Divergence, kl_from_peer, make_folder, measure
from edkd.notebook._run import Epoch, train_together, unused_folder

History = list[list[dict[str, float]]]
"""For each epoch and student, figures by name."""


class DML:
    """Students that learn from the labels and from one another; all are updated on each batch.

    `edkd.distill` trains them, with a constant learning rate. Its run folder is temporary, or with
    `log` below `logdir`.

    Args:
        student_cohort: two networks or more, which return logits or (logits, features).
        train_loader: yields (images, targets).
        test_loader: the same; evaluated after each epoch.
        student_optimizers: one for each student.
        loss_fn: (logits of a student, logits of a peer) -> scalar; default:
            KL(p_peer || p_student).
        device: cpu, cuda, cuda:N, mps or auto.
        log: write scalars for TensorBoard, and keep the run folder.
        logdir: folder for them, and for `losses.png`.

    Raises:
        UserError: there are fewer than two students, or another number of optimizers.

    Example:
        students = [MLP(64, 10, 32), MLP(64, 10, 64)]
        optimizers = [torch.optim.SGD(student.parameters(), lr=0.05) for student in students]
        DML(students, train_loader, test_loader, optimizers).train_students(epochs=5)
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
        students = len(student_cohort)
        if students < 2:
            raise UserError(f"student_cohort has {students} network, but mutual learning needs two")
        if len(student_optimizers) != students:
            raise UserError(
                f"{students} students need {students} optimizers, not {len(student_optimizers)}"
            )

        self.student_cohort = list(student_cohort)
        self.student_optimizers = list(student_optimizers)
        self.train_loader = train_loader
        self.test_loader = test_loader
        self.loss_fn = loss_fn
        with as_current_gpu(str(device)):
            self.device = pick_device(str(device))
        self.log = log
        self.logdir = Path(logdir)

        self.history: History = []
        self.best_accuracy = -1.0
        self.best_student = self.student_cohort[0]
        self.best_state: dict[str, torch.Tensor] = {}
        self.run_folder: Path | None = None
        self._seed = 0

    def train_students(
        self,
        epochs: int = 5,
        plot_losses: bool = True,
        save_model: bool = True,
        save_model_path: str | Path = "./models/student.pt",
    ) -> History:
        """Train; a further call continues after the last epoch.

        The order of the batches follows from torch's random generator, see `torch.manual_seed`.

        Args:
            epochs: of this call.
            plot_losses: draw the losses into `losses.png` in `logdir`, and show it in Jupyter.
            save_model: after each epoch, write the best weights so far, {"model": state_dict}.
            save_model_path: where to.

        Returns:
            For each epoch and student: loss, loss_ce, loss_kd and top1 (percent) of training, and
            test_loss, test_top1.

        Raises:
            UserError: `epochs`, a loader, an optimizer or a path cannot be used.
            NonFiniteError: a loss or a gradient is not finite.
        """
        path = Path(save_model_path)
        self._check_epochs(epochs)
        self._check_outputs(plot_losses, path if save_model else None)
        is_new = not self.history
        if is_new:
            self.run_folder = self._new_run_folder()
            self._seed = int(torch.randint(2**31, ()))
        assert self.run_folder is not None

        with ExitStack() as opened:
            writer = self._open_writer(opened)
            train_together(
                self.student_cohort,
                self.student_optimizers,
                (self.train_loader, self.test_loader),
                self.run_folder,
                epochs=len(self.history) + epochs,
                on_epoch=partial(self._finish_epoch, path if save_model else None, writer),
                divergence=self.loss_fn,
                resume=not is_new,
                device=self.device,
                seed=self._seed,
                lr_decay_stages=[],
            )

        if plot_losses:
            self._plot()
        return self.history

    def evaluate(self) -> list[float]:
        """The accuracy of each student on the test set, in percent; also printed."""
        with as_current_gpu(str(self.device)):
            figures = measure(self.student_cohort, self.test_loader, self.device)
        accuracies = [row["accuracy"] for row in figures[:-1]]
        for number, accuracy in enumerate(accuracies, 1):
            tqdm.write(f"student {number}: {accuracy:.2f} %")
        return accuracies

    def get_parameters(self) -> list[int]:
        """The number of parameters of each student; also printed."""
        sizes = [_num_parameters(student) for student in self.student_cohort]
        for number, size in enumerate(sizes, 1):
            tqdm.write(f"student {number}: {size:,} parameters")
        return sizes

    # Parts of them.

    def _check_epochs(self, epochs: int) -> None:
        """Raise UserError if a call cannot have so many; after the first one, 0 is none."""
        lowest = 0 if self.history else 1
        if not isinstance(epochs, Integral) or epochs < lowest:
            raise UserError(f"epochs is {epochs!r}, but must be an integer of at least {lowest}")

    def _check_outputs(self, plot_losses: bool, path: Path | None) -> None:
        """Create the folders, so that what cannot be written fails before the training."""
        if plot_losses and not find_spec("matplotlib"):
            raise UserError(
                "plot_losses needs matplotlib: pip install matplotlib, or give plot_losses=False"
            )
        if path and path.is_dir():
            raise UserError(f"save_model_path is {path}, a folder; give the path of a file")

        if path:
            make_folder(path.parent)
        if plot_losses or self.log:
            make_folder(self.logdir)

    def _new_run_folder(self) -> Path:
        if self.log:
            return unused_folder(self.logdir / "runs", "dml")

        folder = tempfile.mkdtemp(prefix="edkd-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return Path(folder, "runs", "dml")

    def _open_writer(self, opened: ExitStack) -> Any:
        """A writer for TensorBoard, which `opened` closes; None without `log`."""
        if not self.log:
            return None
        writer = Curves(self.logdir)
        opened.callback(writer.close)
        return writer

    def _finish_epoch(self, path: Path | None, writer: Any, epoch: Epoch) -> None:
        """Collect the history and the best weights, and write what is written each epoch."""
        self.history.append(epoch.students)

        for student, figures in zip(self.student_cohort, epoch.students, strict=True):
            if figures["test_top1"] > self.best_accuracy:
                self.best_accuracy = figures["test_top1"]
                self.best_student = student
                self.best_state = _copy_of_weights(student)
        if path:
            save_checkpoint({"model": self.best_state}, path)

        if writer:
            for number, figures in enumerate(epoch.students, 1):
                for name, value in figures.items():
                    writer.add_scalar(f"student{number}/{name}", value, epoch.number)

        accuracies = [row["test_top1"] for row in epoch.students]
        parts = [f"student {number} {top1:.2f} %" for number, top1 in enumerate(accuracies, 1)]
        parts.append(f"ensemble {epoch.ensemble_top1:.2f} %")
        tqdm.write(f"epoch {epoch.number}: " + "  ".join(parts))

    def _plot(self) -> None:
        """Draw the training losses into `losses.png`, and show it in Jupyter."""
        path = self.logdir / "losses.png"
        save_figure(loss_figure(self.history), path)
        if in_notebook():
            from IPython.display import Image, display

            display(Image(filename=path))


def loss_figure(history: History) -> Any:
    """The training loss of each student over the epochs, as a matplotlib figure."""
    curves = []
    for i in range(len(history[0])):
        losses = [record[i]["loss"] for record in history]
        curves.append(Curve(f"student {i + 1}", losses, end=f"{losses[-1]:.4g}"))
    return figure_of(curves, "Training loss of each student", "loss", "At the right: last epoch")


def _copy_of_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    return {key: value.detach().cpu().clone() for key, value in state.items()}


def _num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
