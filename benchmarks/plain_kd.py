"""KD by a plain loop that shares only networks and precision with the engine, for comparison.

python benchmarks/plain_kd.py [--seed N] [--epochs N] [--alone] [--device DEVICE]

resnet56 -> resnet20 on CIFAR-100 below `data/`, 0.1 CE + 0.9 T^2 KL with T 4, batch 64, SGD with
learning rate 0.05, times 0.1 after 7/12, 9/12 and 11/12 of the epochs. The teacher runs in every
step.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from _common import machine, say
from torch import Tensor
from torchvision.datasets import CIFAR100
from torchvision.transforms.functional import normalize

from edkd.commands._command_line import ArgumentParser, run_command
from edkd.engine.device import amp_dtype, autocast, pick_device
from edkd.engine.weights import load_weights
from edkd.errors import UserError
from edkd.models import get_model, published_weights

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


def crops_and_flips(image: Tensor) -> Tensor:
    """Random crops and flips, each image with its own offset: (N,3,40,40) -> (N,3,32,32)."""
    number = len(image)
    side = torch.arange(32)
    top, left = torch.randint(9, (2, number, 1))
    row = top + side
    column = left + torch.where(torch.rand(number, 1) < 0.5, side.flip(0), side)
    crops = image[torch.arange(number)[:, None, None], :, row[:, :, None], column[:, None]]
    return crops.permute(0, 3, 1, 2)


class Loop:
    """The networks, the images, and a pass over them."""

    def __init__(self, device: torch.device, alone: bool) -> None:
        if not Path("data/cifar-100-python").is_dir():
            raise UserError("no data/cifar-100-python here; run 'edkd download cifar100'")
        train = CIFAR100("data", train=True)
        test = CIFAR100("data", train=False)
        self.padded = F.pad(torch.from_numpy(train.data).permute(0, 3, 1, 2), 4 * (4,))
        self.target = torch.tensor(train.targets)
        self.test_image = torch.from_numpy(test.data).permute(0, 3, 1, 2)
        self.test_target = torch.tensor(test.targets)

        self.device = device
        self.dtype = amp_dtype("auto", device)
        self.alone = alone
        self.student = get_model("cifar", "resnet20", 100)
        self.teacher = get_model("cifar", "resnet56", 100).eval()
        load_weights(self.teacher, Path(str(published_weights("cifar", "resnet56"))))
        for network in (self.student, self.teacher):
            network.to(device, memory_format=torch.channels_last)

    def logits(self, network: torch.nn.Module, image: Tensor) -> Tensor:
        """Float32 logits of a network for images of bytes."""
        image = normalize(image / 255, MEAN, STD)
        image = image.to(self.device, memory_format=torch.channels_last)
        with autocast(self.dtype, self.device):
            return network(image)[0].float()

    def loss(self, image: Tensor, target: Tensor) -> Tensor:
        """The cross-entropy, or 0.1 times it plus 0.9 times the divergence from the teacher."""
        logits = self.logits(self.student, image)
        loss = F.cross_entropy(logits, target.to(self.device))
        if self.alone:
            return loss
        with torch.no_grad():
            soft = (self.logits(self.teacher, image) / 4).softmax(1)
        divergence = F.kl_div((logits / 4).log_softmax(1), soft, reduction="batchmean")
        return 0.1 * loss + 0.9 * 16 * divergence

    def train(self, optimizer: torch.optim.Optimizer) -> None:
        """One epoch."""
        self.student.train()
        for batch in torch.randperm(len(self.target)).split(64):
            loss = self.loss(crops_and_flips(self.padded[batch]), self.target[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    @torch.no_grad()
    def top1(self) -> float:
        """Accuracy on the test set, percent."""
        self.student.eval()
        parts = [self.logits(self.student, image) for image in self.test_image.split(128)]
        hits = torch.cat(parts).argmax(1).cpu() == self.test_target
        return 100 * hits.double().mean().item()


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, train, and print each epoch's accuracy on the test set."""
    parser = ArgumentParser(description="KD by a plain loop.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--alone", action="store_true", help="without the teacher")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)

    device = pick_device(args.device)
    torch.manual_seed(args.seed)
    loop = Loop(device, args.alone)
    optimizer = torch.optim.SGD(loop.student.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    stages = [args.epochs * part // 12 for part in (7, 9, 11)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, stages)

    what = "student alone" if args.alone else "KD"
    say(f"{machine(device)}; {loop.dtype or torch.float32}, {what}, seed {args.seed}")
    for epoch in range(1, args.epochs + 1):
        loop.train(optimizer)
        schedule.step()
        say(f"epoch {epoch}: top-1 {loop.top1():.2f}")


if __name__ == "__main__":
    run_command(main)
