"""Evaluate a model: python tools/eval.py -m MODEL [-c CKPT] [-d DATASET] [-bs BATCH_SIZE] [--device DEVICE]."""

from collections.abc import Sequence

from edkd.errors import ArgumentParser, run_command
from edkd.stop import hold


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, evaluate, print a line."""
    with hold():  # torch takes seconds to load, and must not be cut short by a signal
        from edkd.dataset import dataset_dict
        from edkd.engine.cfg import CFG
        from edkd.engine.load_cfg import load_cfg
        from edkd.engine.run import evaluate_checkpoint

    parser = ArgumentParser(description="Top-1 and top-5 accuracy of a model on the test set.")
    parser.add_argument("-m", "--model", required=True, help="name of the architecture, as resnet8x4")
    parser.add_argument("-c", "--ckpt", default="pretrain", help="file of weights (default: the published ones)")
    parser.add_argument("-d", "--dataset", default=CFG.DATASET.TYPE, help=", ".join(dataset_dict))
    parser.add_argument("-bs", "--batch-size", default="0", help="images in a batch (default: what suits the device)")
    parser.add_argument("--root", default="", help="folder that holds the data set (default: data/)")
    parser.add_argument("--amp", default="off", help="auto, off, bf16 or fp16 (default: off, float32)")
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:N, mps or cpu (default: the best there is)")
    args = parser.parse_args(argv)
    opts = ["DATASET.TYPE", args.dataset, "DISTILLER.STUDENT", args.model, "DATASET.TEST.BATCH_SIZE", args.batch_size]
    cfg = load_cfg(opts=[*opts, "DATASET.ROOT", args.root, "SOLVER.AMP", args.amp])
    result = evaluate_checkpoint(cfg, args.ckpt, args.device)
    accuracy = f"top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} %"
    precision = "float32" if args.amp == "off" else f"precision {args.amp}"
    print(f"{args.model} on {args.dataset}: {accuracy}, loss {result['loss']:.4f} ({precision})")


if __name__ == "__main__":
    run_command(main)
