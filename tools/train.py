"""Train a student: python tools/train.py --cfg FILE [--resume] [--plugin FILE] [--device DEVICE] [KEY VALUE ...]."""

from collections.abc import Sequence

from edkd.errors import ArgumentParser, run_command
from edkd.stop import hold


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and train."""
    parser = ArgumentParser(description="Train a student, alone or taught by a teacher.")
    parser.add_argument("--cfg", default="", metavar="FILE", help="a YAML file; without one, the defaults")
    parser.add_argument("--resume", action="store_true", help="go on with the run that lies in the output folder")
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE", help="a Python file with a method")
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:N, mps or cpu (default: the best there is)")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="override keys, as SOLVER.LR 0.1")
    args = parser.parse_intermixed_args(argv)

    with hold():  # torch takes seconds to load, and must not be cut short by a signal
        from edkd.engine.load_cfg import load_cfg
        from edkd.engine.run import train

    cfg = load_cfg(args.cfg, args.opts, args.plugin)
    train(cfg, args.opts, args.device, args.resume)


if __name__ == "__main__":
    run_command(main, stopped="stopped; --resume goes on from here")
