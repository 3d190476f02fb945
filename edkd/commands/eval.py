"""The command eval."""

from collections.abc import Sequence

from edkd.commands._command_line import ArgumentParser
from edkd.invocation import command
from edkd.signals import hold

DESCRIPTION = """Top-1 and top-5 accuracy of a model on the test set.

examples:
  {eval} -m resnet56
  {eval} -m resnet20 -c output/cifar100_baselines/kd,res56,res20/student_best
  {eval} -m mynet -d mydata --plugin my_parts.py -c output/distill/default/student_best
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, evaluate, print a line."""
    parser = ArgumentParser(
        prog=command("eval"), description=DESCRIPTION.format(eval=command("eval"))
    )
    parser.add_argument("-m", "--model", required=True, help="architecture, as resnet8x4")
    parser.add_argument(
        "-c", "--ckpt", default="pretrain", help="file of weights (default: the published ones)"
    )
    parser.add_argument("-d", "--dataset", default="cifar100", help="(default: cifar100)")
    parser.add_argument(
        "-bs", "--batch-size", default="0", help="images of a batch (default: as suits the device)"
    )
    parser.add_argument("--root", default="", help="folder of the data set (default: data/)")
    parser.add_argument(
        "--amp", default="off", help="auto, off, bf16 or fp16 (default: off, float32)"
    )
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE", help="as in the command train"
    )
    parser.add_argument(
        "--device", default="auto", help="auto, cuda, cuda:N, mps or cpu (default: auto)"
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="keys, as MODEL.mynet.WIDTH 8")
    args = parser.parse_intermixed_args(argv)

    with hold():  # a signal must not interrupt the import of torch, which takes seconds
        from edkd.engine.config.load import load_config
        from edkd.engine.run import evaluate_checkpoint

    opts = {
        "DATASET.TYPE": args.dataset,
        "DATASET.ROOT": args.root,
        "DATASET.TEST.BATCH_SIZE": args.batch_size,
        "DISTILLER.TYPE": "NONE",
        "DISTILLER.STUDENT": args.model,
        "SOLVER.AMP": args.amp,
    }
    words = [word for pair in opts.items() for word in pair]
    cfg = load_config(opts=[*words, *args.opts], plugins=args.plugin)
    result = evaluate_checkpoint(cfg, args.ckpt, args.device)

    precision = "float32" if args.amp == "off" else f"precision {args.amp}"
    print(
        f"{args.model} on {args.dataset}: top-1 {result['top1']:.2f} %, "
        f"top-5 {result['top5']:.2f} %, loss {result['loss']:.4f} ({precision})"
    )
