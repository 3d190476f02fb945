"""The command softlabels."""

from collections.abc import Sequence

from edkd.commands._command_line import ArgumentParser, HelpWithKeys, Once
from edkd.commands._options import add_device, add_plugin
from edkd.errors import UserError
from edkd.invocation import command
from edkd.signals import hold

DESCRIPTION = """Compute and store the teacher's outputs for all views of all training images.

Training with the same configuration then replays them without running the teacher, with any seed,
student and method that reads the same outputs. An interrupted command continues where it stopped.

- Images that are read from files need DATASET.VIEWS, the number of views of each.
- TEACHER_MEMO.TOP_K 10 stores the ten largest probabilities and the mass of the rest, instead of
  all logits.
- TEACHER_MEMO.FOLDER and TEACHER_MEMO.MAX_GB are the folder and its largest size.

examples:
  {softlabels} --cfg configs/imagenet/r34_r18/kd.yaml DATASET.VIEWS 50 TEACHER_MEMO.TOP_K 10
  {train} --cfg configs/imagenet/r34_r18/kd.yaml DATASET.VIEWS 50 TEACHER_MEMO.TOP_K 10
  {softlabels} --cfg configs/cifar100/kd/res56_res20.yaml
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line; compute and store."""
    name = command("softlabels")
    parser = ArgumentParser(
        prog=name,
        description=DESCRIPTION.format(softlabels=name, train=command("train")),
        add_help=False,
    )
    parser.add_argument("-h", "--help", action=HelpWithKeys, help="show this text and all keys")
    parser.add_argument(
        "--cfg", action=Once, default="", metavar="FILE", help="a YAML file, as for train"
    )
    add_plugin(parser, "a Python file, as for train")
    add_device(parser)
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="keys, such as DATASET.VIEWS 50"
    )

    args = parser.parse_intermixed_args(argv)
    if not args.cfg and not args.opts:
        print(f"{parser.format_usage()}\n{parser.description}")
        raise UserError("no teacher: give --cfg FILE, or KEY VALUE pairs")

    with hold():  # a signal must not interrupt the import of torch, which takes seconds
        from edkd.engine.config.load import load_config
        from edkd.engine.softlabels import store_outputs

    cfg = load_config(args.cfg, args.opts, args.plugin)
    store_outputs(cfg, args.device, lambda line: print(line, flush=True))
