"""Train with two versions of the code on this machine and compare the final weights bit for bit.

python benchmarks/same_result.py BASE [CASE ...] [--epochs N]

BASE is a commit, branch or tag. The working tree and a checkout of BASE train the same
configurations with the documented command, on the digits and on one thread. Exit code 1 where a
weight differs.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

CHECKOUT = Path(__file__).resolve().parents[1]
TEACHER = "configs/digits/vanilla/resnet20.yaml"

CASES = {
    "NONE": ["configs/digits/vanilla/resnet8.yaml"],
    "KD": ["configs/digits/kd/res20_res8.yaml"],
    "KD, float32": ["configs/digits/kd/res20_res8.yaml", "SOLVER.AMP", "off"],
    "KD, no cache": ["configs/digits/kd/res20_res8.yaml", "TEACHER_MEMO.ENABLED", "False"],
    "KD, clipped": ["configs/digits/kd/res20_res8.yaml", "SOLVER.CLIP_GRAD_NORM", "1.0"],
    "KD, AdamW": ["configs/digits/kd/res20_res8.yaml", "SOLVER.TYPE", "AdamW", "SOLVER.LR", "1e-3"],
    "DKD": ["configs/digits/dkd/res20_res8.yaml"],
    "EDKD": ["configs/digits/edkd/res20_res8.yaml"],
    "EDKD, reference": ["configs/digits/edkd/res20_res8.yaml", "EDKD.FORM", "reference"],
    "EDKD, held-out split": ["configs/digits/edkd/res20_res8.yaml", "DATASET.VAL_SPLIT", "0.2"],
    "DML": ["configs/digits/dml/res8_2.yaml"],
    "DML, alternating": ["configs/digits/dml/res8_2.yaml", "DML.UPDATE", "alternating"],
    "ONE": ["configs/digits/one/res8_3.yaml"],
    "OKDDip": ["configs/digits/okddip/res8_4.yaml"],
    "KDCL": ["configs/digits/kdcl/res8_2.yaml"],
}


def main(argv: Sequence[str] | None = None) -> int:
    """Train every case twice and print a line for each; return the exit code."""
    parser = argparse.ArgumentParser(description="Compare the results of two versions bit for bit.")
    parser.add_argument("base", help="a commit, branch or tag")
    parser.add_argument(
        "cases", nargs="*", metavar="CASE", help=f"default: all of {', '.join(CASES)}"
    )
    parser.add_argument("--epochs", type=int, default=2, help="epochs of each run (default: 2)")
    args = parser.parse_args(argv)

    different = 0
    with (
        tempfile.TemporaryDirectory(prefix="edkd-same-") as scratch,
        checkout_of(args.base, scratch) as base,
    ):
        teacher = Path(scratch, "teacher")
        weights = train(base, teacher, [TEACHER], args.epochs)["student_best"]

        for name in args.cases or CASES:
            words = [*CASES[name], "DISTILLER.TEACHER_CKPT", str(weights)]
            before = train(base, Path(scratch, "base", name), words, args.epochs)
            after = train(CHECKOUT, Path(scratch, "tree", name), words, args.epochs)
            reason = difference(before, after)
            different += bool(reason)
            print(f"{name:22} {reason or 'bit-for-bit identical'}", flush=True)

    print(f"{different} of {len(args.cases or CASES)} cases differ")
    return 1 if different else 0


@contextmanager
def checkout_of(commit: str, scratch: str) -> Iterator[Path]:
    """A temporary worktree of a commit."""
    folder = Path(scratch, "checkout")
    git = ["git", "-C", str(CHECKOUT), "worktree"]
    subprocess.run([*git, "add", "--detach", "--quiet", str(folder), commit], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def train(checkout: Path, prefix: Path, words: Sequence[str], epochs: int) -> dict[str, Path]:
    """Run tools/train.py of a checkout; return the student files of its run, by name."""
    config, *pairs = words
    command = [sys.executable, "tools/train.py", "--device", "cpu", "--cfg", config]
    always = ["LOG.PREFIX", str(prefix), "LOG.WANDB", "False", "SOLVER.EPOCHS", str(epochs)]
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*command, *always, *pairs], cwd=checkout, env=environment, capture_output=True, text=True
    )
    if run.returncode:
        sys.exit(f"{' '.join(command)} in {checkout} ended with {run.returncode}: {run.stderr}")

    (config_file,) = prefix.glob("*/*/config.yaml")
    return {path.name: path for path in sorted(config_file.parent.glob("student*"))}


def difference(before: dict[str, Path], after: dict[str, Path]) -> str:
    """The first difference between two runs' student files, or ""."""
    if before.keys() != after.keys():
        return f"different files: {sorted(before.keys() ^ after.keys())}"
    for name, path in before.items():
        old, new = (torch.load(file, weights_only=True)["model"] for file in (path, after[name]))
        if old.keys() != new.keys():
            return f"{name}: different keys: {sorted(old.keys() ^ new.keys())}"
        for key, tensor in old.items():
            if not torch.equal(tensor, new[key]):
                largest = (tensor.double() - new[key].double()).abs().max().item()
                return f"{name}: {key} differs by up to {largest:.1e}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
