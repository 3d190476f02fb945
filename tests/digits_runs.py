"""Finished runs on digits with real weights: a teacher, two seeds of KD, a student alone, DML."""

from pathlib import Path

from edkd.api import load_config, train

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "digits"


def train_digits(root: Path, name: str, config: str, *opts: object) -> Path:
    """Train what a file of configs/digits/ describes, in root/digits/<name>; return the folder.

    A run that has its result is not repeated.
    """
    folder = root / "digits" / name
    if (folder / "result.json").is_file():
        return folder

    words = ["SOLVER.AMP", "off", "LOG.PREFIX", root, "LOG.TENSORBOARD_FREQ", 0]
    words += ["LOG.PRINT", "False", "DISTILLER.CHECK_TEACHER", "False"]
    words += ["TEACHER_MEMO.ENABLED", "False", "EXPERIMENT.NAME", name]
    cfg = load_config(str(CONFIGS / config), [str(word) for word in [*words, *opts]])
    train(cfg, device="cpu")
    return folder


def train_all(root: Path) -> dict[str, Path]:
    """The folders of five short runs, by name."""
    teacher = train_digits(root, "teacher", "vanilla/resnet20.yaml", "SOLVER.EPOCHS", 1)
    weights = [
        "DISTILLER.TEACHER_CKPT",
        teacher / "student_best",
        "SOLVER.EPOCHS",
        2,
        "SOLVER.BATCH_SIZE",
        64,
    ]
    kd = "kd/res20_res8.yaml"
    return {
        "teacher": teacher,
        "kd1": train_digits(root, "kd,seed=1", kd, *weights, "SOLVER.SEED", 1),
        "kd2": train_digits(root, "kd,seed=2", kd, *weights, "SOLVER.SEED", 2),
        "alone": train_digits(root, "alone", "vanilla/resnet8.yaml", "SOLVER.EPOCHS", 1),
        "dml": train_digits(root, "dml", "dml/res8_2.yaml", "SOLVER.EPOCHS", 1),
    }
