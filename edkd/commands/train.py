"""The command train."""

from collections.abc import Sequence

from edkd.commands._command_line import ArgumentParser, HelpWithKeys
from edkd.commands._options import add_training
from edkd.errors import UserError
from edkd.invocation import command
from edkd.signals import hold

DESCRIPTION = """Train a student, alone or with a teacher.

examples:
  {train} --cfg configs/digits/vanilla/resnet8.yaml
  {train} --cfg configs/cifar100/edkd/res56_res20.yaml SOLVER.LR 0.1
  {train} --cfg configs/cifar100/edkd/res56_res20.yaml SOLVER.LR 0.1 --resume
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and train."""
    parser = ArgumentParser(
        prog=command("train"),
        description=DESCRIPTION.format(train=command("train")),
        add_help=False,
    )
    parser.add_argument("-h", "--help", action=HelpWithKeys, help="show this text and all keys")
    add_training(parser, "", "")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="keys, such as SOLVER.LR 0.1")

    args = parser.parse_intermixed_args(argv)
    if not args.cfg and not args.opts:
        print(f"{parser.format_usage()}\n{parser.description}")
        raise UserError("nothing to train: give --cfg FILE, or KEY VALUE pairs")

    with hold():  # a signal must not interrupt the import of torch, which takes seconds
        from edkd.engine.config.load import load_config
        from edkd.engine.run import train

    cfg = load_config(args.cfg, args.opts, args.plugin)
    train(cfg, args.opts, args.device, args.resume)
