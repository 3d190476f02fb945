"""KD by a plain loop that shares nothing with the engine but networks and precision: what ours is to be compared with.

python benchmarks/plain_kd.py [--seed N] [--epochs N] [--alone] [--device DEVICE]

resnet56 -> resnet20 on CIFAR-100 below `data/`, 0.1 CE + 0.9 T^2 KL with T 4, batch 64, SGD with learning rate 0.05,
times 0.1 after 7/12, 9/12 and 11/12 of the epochs. The teacher runs in every step.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from _common import machine, say
from torch import Tensor
from torchvision.datasets import CIFAR100
from torchvision.transforms.functional import normalize

from edkd.engine.checkpoint import load_weights
from edkd.engine.device import amp_dtype, autocast, pick_device
from edkd.errors import ArgumentParser, UserError, run_command
from edkd.models import get_model, published_weights

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


def crops_and_flips(image: Tensor) -> Tensor:
    """Of images (N,3,40,40), each from an offset of its own and half of them mirrored: (N,3,32,32)."""
    number, side = len(image), torch.arange(32)
    top, left = torch.randint(9, (2, number, 1))
    row = top + side
    column = left + torch.where(torch.rand(number, 1) < 0.5, side.flip(0), side)
    return image[torch.arange(number)[:, None, None], :, row[:, :, None], column[:, None]].permute(0, 3, 1, 2)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, train, and print each epoch's accuracy on the test set."""
    parser = ArgumentParser(description="KD by a plain loop.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--alone", action="store_true", help="without the teacher")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    device = pick_device(args.device)
    dtype = amp_dtype("auto", device)
    torch.manual_seed(args.seed)
    if not Path("data/cifar-100-python").is_dir():
        raise UserError("no data/cifar-100-python here; fetch it with 'python tools/download.py cifar100'")
    train, test = CIFAR100("data", train=True), CIFAR100("data", train=False)
    padded = F.pad(torch.from_numpy(train.data).permute(0, 3, 1, 2), 4 * (4,))
    pixels = torch.from_numpy(test.data).permute(0, 3, 1, 2)
    target, target_test = torch.tensor(train.targets), torch.tensor(test.targets)

    student, teacher = get_model("cifar", "resnet20", 100), get_model("cifar", "resnet56", 100).eval()
    load_weights(teacher, Path(str(published_weights("cifar", "resnet56"))))
    for network in (student, teacher):
        network.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(student.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    steps = torch.optim.lr_scheduler.MultiStepLR(optimizer, [args.epochs * n // 12 for n in (7, 9, 11)])

    def logits(network: torch.nn.Module, image: Tensor) -> Tensor:
        image = normalize(image / 255, MEAN, STD).to(device, memory_format=torch.channels_last)
        with autocast(dtype, device):
            return network(image)[0].float()

    say(f"{machine(device)}; {dtype or torch.float32}, {'student alone' if args.alone else 'KD'}, seed {args.seed}")
    for epoch in range(1, args.epochs + 1):
        student.train()
        for batch in torch.randperm(len(target)).split(64):
            image, label = crops_and_flips(padded[batch]), target[batch].to(device)
            said = logits(student, image)
            loss = F.cross_entropy(said, label)
            if not args.alone:
                with torch.no_grad():
                    wanted = (logits(teacher, image) / 4).softmax(1)
                loss = 0.1 * loss + 0.9 * 16 * F.kl_div((said / 4).log_softmax(1), wanted, reduction="batchmean")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        steps.step()
        student.eval()
        with torch.no_grad():
            said = torch.cat([logits(student, part) for part in pixels.split(128)]).argmax(1).cpu()
        say(f"epoch {epoch}: top-1 {100 * (said == target_test).double().mean().item():.2f}")


if __name__ == "__main__":
    run_command(main)
