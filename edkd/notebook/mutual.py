"""Deep mutual learning from a dictionary of settings: train, resume, evaluate (arXiv:1706.00384)."""

import json
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from edkd.dataset.sampling import seed_everything, seed_for
from edkd.engine.checkpoint import load_checkpoint, save_checkpoint, save_text
from edkd.engine.device import pick_device
from edkd.errors import UserError, nearest
from edkd.models import get_model
from edkd.notebook._loop import kl_from_peer, logits_of, make_folder, measure, student_loss, train_cohort

MODELS = {name: name.lower() for name in ("ResNet20", "ResNet32", "ResNet44", "ResNet56", "ResNet110")}

DEFAULT_CONFIG: dict[str, Any] = {
    "model": "ResNet32",  # of MODELS
    "data_dir": "./data",  # holds train/, val/ and perhaps test/, each with a folder a class
    "batch_size": 32,
    "num_workers": 4,  # processes that read images
    "augment": False,  # crops, flips, rotations, colours
    "epochs": 200,
    "lr": 0.1,  # SGD's, at the start
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "step_size": 60,  # epochs between the falls of the rate
    "gamma": 0.1,  # factor of each fall
    "model_num": 2,  # students, >= 2
    "num_classes": None,  # None: as many as the training set names
    "seed": 1,  # of the weights and of the order of the images
    "device": "auto",  # auto, cpu, cuda, cuda:N, mps
    "print_freq": 10,  # epochs between the lines on the screen; the log has all
    "save_freq": 10,  # epochs between the numbered checkpoints; 0: none
    "save_dir": "checkpoints",
    "log_dir": "logs",
    "experiment_name": None,  # None: made of the model and the time
    "resume": None,  # a checkpoint <experiment>_model<i>_epoch_<n>.pth or _final.pth; the others lie beside it
}


LOWEST = dict(model_num=2, epochs=1, batch_size=1, step_size=1, print_freq=1, num_classes=2, save_freq=0, num_workers=0)
LOWEST |= dict(lr=0, momentum=0, weight_decay=0, gamma=0, seed=0)
FREE_ON_RESUME = (
    *("epochs", "device", "print_freq", "save_freq", "data_dir", "save_dir", "log_dir"),
    *("experiment_name", "resume"),
)


class Average(NamedTuple):
    """The mean of a figure over an epoch."""

    avg: float


def create_dml_config(**kwargs: Any) -> dict[str, Any]:
    """DEFAULT_CONFIG with some values replaced. Raises UserError for an unknown name or a value that cannot be."""
    for name in kwargs:
        if name not in DEFAULT_CONFIG:
            raise UserError(f"unknown setting {name}{nearest(name, DEFAULT_CONFIG)}")
    config = DEFAULT_CONFIG | {name: _plain(name, value) for name, value in kwargs.items()}
    if config["model"] not in MODELS:
        raise UserError(
            f"model is {config['model']!r}, not one of {', '.join(MODELS)}{nearest(config['model'], MODELS)}"
        )
    if (name := config["experiment_name"]) and Path(name).name != name:
        raise UserError(f"experiment_name is {name!r}, but must be a name without folders; save_dir says where to")
    for name, low in LOWEST.items():
        if config[name] is not None and not config[name] >= low:
            raise UserError(f"{name} is {config[name]}, but must be at least {low}")
    return config


def _plain(name: str, value: Any) -> Any:
    """The value in the type of its default, as a checkpoint can hold it. Raises UserError."""
    default = DEFAULT_CONFIG[name]
    kind = {"num_classes": int, "experiment_name": str, "resume": str}.get(name, type(default))
    if value is None and default is None:
        return None
    if kind is str:
        return str(value)
    try:
        if isinstance(value, str) or (kind is int and value != int(value)):
            raise ValueError
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{name} is {value!r}, not of type {kind.__name__}") from None


def prepare_dataloaders(
    data_dir: str | Path, batch_size: int = 32, augment: bool = False, num_workers: int = 4
) -> tuple[DataLoader, DataLoader, DataLoader | None]:
    """Loaders of `data_dir/{train,val,test}/<class>/*`, the images resized to 32x32; None where there is no test/.

    Args:
        augment: of the training images: crops (padding 4), flips, rotations up to 15 degrees, colour jitter.

    Raises:
        UserError: train/ or val/ is absent or empty, or they hold different classes.
    """
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    plain = [transforms.ToTensor(), transforms.Normalize(3 * (0.5,), 3 * (0.25,))]
    resize = transforms.Resize((32, 32))
    varied = [
        transforms.RandomCrop(32, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.RandomRotation(15),
        transforms.ColorJitter(0.2, 0.2, 0.2),
    ]
    sets: list[Any] = []
    for part in ("train", "val", "test"):
        folder = Path(data_dir).expanduser() / part
        if part == "test" and not folder.is_dir():
            sets.append(None)
            continue
        chain = transforms.Compose([resize, *(varied if augment and part == "train" else []), *plain])
        try:
            sets.append(ImageFolder(str(folder), chain))
        except FileNotFoundError as error:
            raise UserError(f"data_dir: no images in {folder} ({error}); lay them out as {part}/<class>/*") from None
        if sets[-1].classes != sets[0].classes:
            raise UserError(f"data_dir: {folder} holds other classes than train")
    train, val, test = (
        part and DataLoader(part, batch_size, shuffle=part is sets[0], num_workers=num_workers) for part in sets
    )
    return train, val, test


def compute_dml_loss(
    models: Sequence[nn.Module], x: Tensor, y: Tensor, model_idx: int
) -> tuple[Tensor, dict[str, float]]:
    """The loss of one model, CE + 1 / (S - 1) sum_j KL(p_j || p_i), to call `backward` on; peers get no gradient.

    Each call asks every model, whose batch norms count it in training mode; `train_epoch_dml` asks each once a batch.

    Returns:
        The loss, and {"ce_loss", "kl_loss", "total_loss"} as numbers.
    """
    if len(models) < 2:
        raise UserError(f"models holds {len(models)}, but it takes two to learn together")
    model_idx %= len(models)
    own = logits_of(models[model_idx], x)
    with torch.no_grad():
        logits = [own if i == model_idx else logits_of(model, x) for i, model in enumerate(models)]
    losses = student_loss(logits, y, model_idx, kl_from_peer)
    names = {"ce_loss": "loss_ce", "kl_loss": "loss_kd", "total_loss": "loss"}
    return losses["loss"], {name: losses[key].item() for name, key in names.items()}


def train_epoch_dml(
    models: Sequence[nn.Module],
    optimizers: Sequence[optim.Optimizer],
    train_loader: Iterable[Any],
    device: str | torch.device,
    config: dict[str, Any] | None = None,
) -> tuple[list[Average], list[Average]]:
    """An epoch, with one forward pass a model and batch; returns losses and accuracies in percent, a meter a model."""
    num_classes = (config or {}).get("num_classes")
    figures = train_cohort(models, optimizers, train_loader, pick_device(str(device)), num_classes=num_classes)
    return [Average(row["loss"]) for row in figures], [Average(row["top1"]) for row in figures]


def validate_dml(
    models: Sequence[nn.Module],
    val_loader: Iterable[Any],
    device: str | torch.device,
    config: dict[str, Any] | None = None,
) -> tuple[list[Average], list[Average]]:
    """Cross-entropies and accuracies in percent on a set, a meter a model."""
    figures = measure(models, val_loader, pick_device(str(device)), (config or {}).get("num_classes"))[:-1]
    return [Average(row["loss"]) for row in figures], [Average(row["accuracy"]) for row in figures]


def evaluate_dml_models(
    models: Sequence[nn.Module],
    data_loader: Iterable[Any],
    device: str | torch.device = "auto",
    config: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Of each model and last of the ensemble (`model_idx` "ensemble"): loss, accuracy in percent, total_samples."""
    figures = measure(models, data_loader, pick_device(str(device)), (config or {}).get("num_classes"))
    return [row | {"model_idx": i} for i, row in zip([*range(len(models)), "ensemble"], figures, strict=True)]


def evaluate_ensemble(
    models: Sequence[nn.Module],
    data_loader: Iterable[Any],
    device: str | torch.device = "auto",
    config: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """That of the mean of the models' probabilities alone."""
    return evaluate_dml_models(models, data_loader, device, config)[-1]


def load_dml_models(
    checkpoint_paths: Sequence[str | Path], device: str | torch.device = "auto"
) -> tuple[list[nn.Module], list[dict[str, Any]], torch.device]:
    """Models in eval mode from checkpoints of `train_dml`, their configurations, and the device that they are on."""
    where, models, configs = pick_device(str(device)), [], []
    if isinstance(checkpoint_paths, (str, Path)):
        checkpoint_paths = [checkpoint_paths]
    for path in checkpoint_paths:
        state = _read(Path(path))
        weights, config = state["model_state_dict"], state["config"]
        try:
            num_classes = config.get("num_classes") or len(weights["fc.weight"])
            model = get_model("cifar", MODELS[config["model"]], num_classes)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is no checkpoint of train_dml ({type(error).__name__}: {error})") from None
        _load(model, weights, path)
        models.append(model.eval().to(where))
        configs.append(state["config"])
    return models, configs, where


def train_dml(
    config: dict[str, Any] | None = None,
    train_loader: Iterable[Any] | None = None,
    val_loader: Iterable[Any] | None = None,
    test_loader: Iterable[Any] | None = None,
) -> dict[str, Any]:
    """Train `model_num` models that learn from one another.

    Args:
        config: what differs from DEFAULT_CONFIG.
        train_loader, val_loader, test_loader: yield (images, targets); default: those of `prepare_dataloaders`.

    Returns:
        models, best_accuracies (percent, on the validation set), avg_best_accuracy, training_history, test_results
        (None without a test set), config, experiment_name. A run that is resumed ends as one that was not stopped,
        where the loaders draw from torch's global generator, as DataLoader does.
    """
    config = create_dml_config(**(config or {}))
    if train_loader is None:
        train_loader, *rest = prepare_dataloaders(
            config["data_dir"], config["batch_size"], config["augment"], config["num_workers"]
        )
        val_loader, test_loader = val_loader or rest[0], test_loader or rest[1]
    if val_loader is None:
        raise UserError("train_dml needs a val_loader beside the train_loader")
    config["num_classes"] = config["num_classes"] or _num_classes(train_loader)
    return _Run(config, _about(train_loader)).train(train_loader, val_loader, test_loader)


class _Run:
    """The models of a configuration on their way, and the files that tell of it."""

    def __init__(self, config: dict[str, Any], data: dict[str, Any]) -> None:
        self.config, self.data, self.device = config, data, pick_device(config["device"])
        torch.manual_seed(seed_for(config["seed"], 0))
        name, number = MODELS[config["model"]], config["model_num"]
        self.models = [get_model("cifar", name, config["num_classes"]).to(self.device) for _ in range(number)]
        options = dict(lr=config["lr"], momentum=config["momentum"], weight_decay=config["weight_decay"])
        self.optimizers = [optim.SGD(model.parameters(), **options) for model in self.models]
        self.best = [-1.0] * number
        self.history: list[dict[str, Any]] = []
        self.name = config["experiment_name"] or f"dml_{config['model']}_{time.strftime('%Y%m%d_%H%M%S')}"
        self.save_dir, self.log_dir = Path(config["save_dir"]), Path(config["log_dir"])
        if config["resume"]:
            self._resume(Path(config["resume"]))
        elif self._summary().exists():
            raise UserError(f"{self._summary()} tells of such a run; resume it, or give another experiment_name")
        for folder in (self.save_dir, self.log_dir):
            make_folder(folder)

    def train(self, train_loader: Iterable[Any], val_loader: Iterable[Any], test_loader: Any) -> dict[str, Any]:
        """The epochs that are left, the test, the summary."""
        from tensorboardX import SummaryWriter

        config, done = self.config, len(self.history)
        writer = SummaryWriter(str(self.log_dir / self.name), purge_step=done + 1 if done else None)
        for epoch in range(done + 1, config["epochs"] + 1):
            rate = config["lr"] * config["gamma"] ** ((epoch - 1) // config["step_size"])
            for optimizer in self.optimizers:
                optimizer.param_groups[0]["lr"] = rate
            seed_everything(seed_for(config["seed"], epoch, 0))  # of the loaders, whatever came before
            trained = train_epoch_dml(self.models, self.optimizers, train_loader, self.device, config)
            tested = validate_dml(self.models, val_loader, self.device, config)
            self._record(epoch, rate, trained, tested, writer)
        writer.close()
        self._save("final")
        results = None
        if test_loader is not None:
            losses, accuracies = (
                [row.avg for row in rows] for rows in validate_dml(self.models, test_loader, self.device, config)
            )
            mean = sum(accuracies) / len(accuracies)
            results = {"test_losses": losses, "test_accs": accuracies, "avg_test_acc": mean}
        summary = {
            "best_accuracies": self.best,
            "avg_best_accuracy": sum(self.best) / len(self.best),
            "training_history": self.history,
            "test_results": results,
            "config": config,
            "experiment_name": self.name,
        }
        self._summarise(summary)
        return {"models": self.models} | summary

    def _record(self, epoch: int, rate: float, trained: Any, tested: Any, writer: Any) -> None:
        keys = ("train_loss", "train_acc", "val_loss", "val_acc")
        rows = zip(*trained, *tested, strict=True)
        models = [{"model_idx": i} | {k: m.avg for k, m in zip(keys, row, strict=True)} for i, row in enumerate(rows)]
        self.history.append({"epoch": epoch, "lr": rate, "models": models})
        improved = [row["val_acc"] > best for row, best in zip(models, self.best, strict=True)]
        self.best = [max(row["val_acc"], best) for row, best in zip(models, self.best, strict=True)]
        self._save("best", improved)
        self._summarise({"training_history": self.history, "config": self.config})  # which a checkpoint goes on from
        if self.config["save_freq"] and epoch % self.config["save_freq"] == 0:
            self._save(f"epoch_{epoch}")
        for row in models:
            for key in keys:
                writer.add_scalar(f"model{row['model_idx']}/{key}", row[key], epoch)
        accuracies = ", ".join(f"{row['val_acc']:.2f}" for row in models)
        line = f"epoch {epoch}/{self.config['epochs']}: lr {rate:.4g}, accuracies {accuracies} %"
        if epoch % self.config["print_freq"] == 0 or epoch in (1, self.config["epochs"]):
            tqdm.write(line)
        with open(self.log_dir / f"{self.name}.log", "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def _summarise(self, summary: dict[str, Any]) -> None:
        save_text(json.dumps(summary, indent=1, default=str) + "\n", self._summary())

    def _summary(self) -> Path:
        return self.log_dir / f"{self.name}_summary.json"

    def _path(self, i: int, tag: str) -> Path:
        return self.save_dir / f"{self.name}_model{i}_{tag}.pth"

    def _save(self, tag: str, wanted: Sequence[bool] | None = None) -> None:
        for i, (model, optimizer) in enumerate(zip(self.models, self.optimizers, strict=True)):
            if wanted is None or wanted[i]:
                state = {"model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
                about: dict[str, Any] = {"epoch": len(self.history), "best_acc": self.best[i]}
                about |= {"config": self.config, "data": self.data}
                save_checkpoint(state | about, self._path(i, tag))

    def _resume(self, path: Path) -> None:
        """Take over all models' checkpoints of one epoch, and the history up to there."""
        if not (match := re.fullmatch(r"(.+)_model\d+_(epoch_\d+|final)\.pth", path.name)):
            raise UserError(f"resume: {path.name} is no <experiment>_model<i>_epoch_<n>.pth or _final.pth")
        self.name, tag = match.groups()
        summary, epochs = self._summary(), set()
        for i, (model, optimizer) in enumerate(zip(self.models, self.optimizers, strict=True)):
            file = path.with_name(f"{self.name}_model{i}_{tag}.pth")
            state = _read(file)
            for name, value in self.config.items():
                if name not in FREE_ON_RESUME and (was := state["config"].get(name, value)) != value:
                    raise UserError(f"resume: {name} was {was!r} and is {value!r}; give the same")
            if (was := state.get("data", self.data)) != self.data:
                raise UserError(f"resume: the training set was {was} and is {self.data}; give the same")
            _load(model, state["model_state_dict"], file)
            _load(optimizer, state["optimizer_state_dict"], file)
            self.best[i] = state["best_acc"]
            epochs.add(epoch := state["epoch"])
        if len(epochs) > 1:
            raise UserError(f"resume: the files {self.name}_model<i>_{tag}.pth are of different epochs; name others")
        try:
            self.history = json.loads(summary.read_text(encoding="utf-8"))["training_history"][:epoch]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"resume: {summary} cannot be read ({type(error).__name__}); it holds the history"
            ) from None
        if [record["epoch"] for record in self.history] != list(range(1, epoch + 1)):
            raise UserError(f"resume: {summary} lacks epochs before {epoch}")


def _read(path: Path) -> dict[str, Any]:
    state = load_checkpoint(path)
    if lacking := {"epoch", "model_state_dict", "optimizer_state_dict", "best_acc", "config"} - state.keys():
        raise UserError(f"{path} is no checkpoint of train_dml: it lacks {min(lacking)}")
    return state


def _load(part: Any, state: Any, path: str | Path) -> None:
    try:
        part.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is of another architecture or number of classes ({reason})") from None


def _about(loader: Any) -> dict[str, Any]:
    """What tells a training set from another: the number of its images, the names of its classes."""
    dataset: Any = getattr(loader, "dataset", None)
    classes = [str(name) for name in getattr(dataset, "classes", None) or []]
    return {"images": len(dataset) if hasattr(dataset, "__len__") else None, "classes": classes}


def _num_classes(loader: Any) -> int:
    classes = getattr(getattr(loader, "dataset", None), "classes", None)
    if not classes:
        raise UserError("the training set names no classes; give num_classes")
    return len(classes)
