"""Methods in mdistiller's published style: unchanged files run on this engine."""

import pytest
import torch
from torch import nn

from edkd.distillers import construct, find_method
from edkd.distillers._common import ConvReg, get_feat_shapes
from edkd.engine.build import build_trainer
from edkd.engine.config.plugins import import_plugin
from edkd.errors import UserError
from tests.conftest import TESTS
from tests.small import CPU, TinyNet, config, info, tiny_data

FILE = TESTS / "reports" / "published_methods.py"

KINDS = ("LOGITS", "ATTENTION", "POOLED", "FLAT", "CHANNELS", "DECOMPOSED", "HINT", "VARIANCE")
KINDS += ("CONNECTED", "REVIEW", "IMAGE")


class Staged(TinyNet):
    """With the questions that published methods put to a network."""

    def get_stage_channels(self):
        return [self.conv.out_channels] * 2

    def get_bn_before_relu(self):
        return [self.bn]


@pytest.fixture
def trainer_of(tmp_path):
    """Trainer of a method of a plugin file, with tiny networks."""

    def make(name, *opts, file=FILE):
        import_plugin(str(file))
        cfg = config("DISTILLER.TYPE", name, "LOG.PREFIX", tmp_path, *opts)
        torch.manual_seed(0)
        distiller = construct(find_method(name), Staged(), Staged(channels=12), cfg, info())
        data = tiny_data(cfg)
        trainer = build_trainer(cfg, data, distiller, tmp_path, CPU)
        trainer.distiller.train()
        return trainer

    return make


def steps(trainer, number=2):
    """The sums of the losses of the first steps."""
    inputs = trainer.data.train.inputs(1)
    return [float(trainer.train_step(1, *next(inputs))[0]["loss"]) for _ in range(number)]


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_method_of_this_kind_trains(trainer_of, kind, amp):
    """Reported as `view size is not compatible with input tensor's size and stride`.

    As in bearpaw/pytorch-classification #53, for many repositories of the field.

    The networks compute in channels_last, whose strides `view` does not allow, and files that
    import `ConvReg` or `get_feat_shapes` from `._common` were not importable.
    """
    trainer = trainer_of(f"PUB_{kind}", "SOLVER.AMP", amp)
    before = trainer.distiller.student.fc.weight.clone()
    first, second = steps(trainer)
    assert torch.isfinite(torch.tensor([first, second])).all()
    assert trainer.evaluate("test")["loss"] > 0
    assert not torch.equal(before, trainer.distiller.student.fc.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_the_layout_changes_no_result(trainer_of, kind, monkeypatch):
    """What a step computes is what contiguous networks compute, up to rounding."""
    opts = ["SOLVER.AMP", "off"]
    losses = steps(trainer_of(f"PUB_{kind}", *opts))
    monkeypatch.setattr("edkd.engine.build.to_channels_last", lambda network: None)
    assert losses == pytest.approx(steps(trainer_of(f"PUB_{kind}", *opts)), rel=1e-4)


def test_logits_of_a_published_method_are_still_cached(trainer_of):
    """Contiguous images are other tensors than those of the loader; the cache must know them."""
    from edkd.engine.memo.cache import attach

    trainer = trainer_of("PUB_LOGITS")
    lines = []
    trainer.train_step.cache = attach(
        trainer.distiller, trainer.data.train, trainer.cfg, CPU, None, range(1, 2), lines.append
    )
    assert trainer.train_step.cache is not None, lines
    trainer.train_step.cache.prepare(1, lines.append)
    trainer.distiller.teachers()[0].forward = lambda image: pytest.fail("the teacher ran")
    trainer.distiller.train()
    steps(trainer)


def test_a_method_with_a_loader_of_its_own_is_refused_in_one_line(trainer_of):
    """It was a TypeError in the first step: an argument that no loader here gives."""
    with pytest.raises(UserError, match="Contrast.* needs contrastive_index, which only a trainer"):
        trainer_of("PUB_CONTRAST")


def write(folder, text):
    path = folder / "method.py"
    path.write_text(
        "import torch, torch.nn.functional as F\n"
        "from ._base import Distiller\n"
        f"from edkd.distillers import register\n{text}"
    )
    return path


def test_a_view_of_an_inner_activation_is_one_line(trainer_of, tmp_path):
    """A hook sees tensors within the network, in its own layout."""
    file = write(
        tmp_path,
        """
@register("PUB_HOOKED")
class Hooked(Distiller):
    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher)
        self.seen = []
        student.conv.register_forward_hook(lambda *args: self.seen.append(args[-1]))

    def forward_train(self, image, target, **kwargs):
        logits, _ = self.student(image)
        loss = self.seen[-1].view(len(image), -1).mean()
        return logits, {"loss_ce": F.cross_entropy(logits, target) + loss}
""",
    )
    trainer = trainer_of("PUB_HOOKED", file=file)
    with pytest.raises(UserError, match=r"Hooked: .*method.py, line 14, calls `view`.*`reshape`"):
        steps(trainer)


def test_a_node_that_nobody_declared_is_one_line(trainer_of, tmp_path):
    """A published file reads `cfg.AT`, which mdistiller declares elsewhere; it was a traceback."""
    file = write(
        tmp_path,
        """
@register("PUB_KEYS")
class Keys(Distiller):
    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher)
        self.p = cfg.PUB_KEYS.P

    def forward_train(self, image, target, **kwargs):
        pass
""",
    )
    with pytest.raises(UserError, match="Keys .*reads the key PUB_KEYS, which the configuration"):
        trainer_of("PUB_KEYS", file=file)


@pytest.mark.parametrize(
    ("height", "expected"), [(4, 4), (16, 16), (8, 8), (5, 5)], ids=["half", "double", "same", "5"]
)
def test_a_connector_has_the_teachers_shape(height, expected):
    connector = ConvReg((1, 6, 8, 8), (1, 12, height, height))
    result = connector(torch.randn(2, 6, 8, 8))
    assert result.shape == (2, 12, expected, expected)
    assert result.min() == 0
    assert ConvReg((1, 6, 8, 8), (1, 12, 8, 8), use_relu=False)(torch.randn(2, 6, 8, 8)).min() < 0


def test_a_connector_that_cannot_be_made_is_named():
    with pytest.raises(UserError, match="ConvReg: .* cannot become one of"):
        ConvReg((1, 6, 8, 8), (1, 12, 20, 20))


def test_shapes_are_found_without_training_the_statistics():
    """The published helper runs the teacher in train mode on noise, which changes it."""
    teacher = TinyNet(channels=12).train()
    shapes = get_feat_shapes(TinyNet(), teacher, (8, 8))
    assert shapes == ([(1, 6, 8, 8)] * 2, [(1, 12, 8, 8)] * 2)
    assert isinstance(teacher.bn, nn.BatchNorm2d)
    assert teacher.bn.num_batches_tracked == 0
