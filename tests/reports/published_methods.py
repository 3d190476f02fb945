"""A plugin for tests: methods that use mdistiller's interface in the ways of its published files.

Each is small and stands for a kind: which features it reads, how it flattens them, what modules it
trains, what it overrides. None is a method of its own.
"""

import torch
import torch.nn.functional as F
from torch import nn

from edkd.distillers import register

from ._base import Distiller
from ._common import ConvReg, get_feat_shapes


class Published(Distiller):
    """Runs both networks; a subclass compares."""

    def __init__(self, student, teacher, cfg):
        super(Published, self).__init__(student, teacher)  # noqa: UP008
        self.ce_loss_weight = 1.0

    def forward_train(self, image, target, **kwargs):
        logits_student, feature_student = self.student(image)
        with torch.no_grad():
            logits_teacher, feature_teacher = self.teacher(image)
        loss_ce = self.ce_loss_weight * F.cross_entropy(logits_student, target)
        student = (logits_student, feature_student)
        loss_kd = self.compare(student, (logits_teacher, feature_teacher), kwargs)
        return logits_student, {"loss_ce": loss_ce, "loss_kd": loss_kd}


@register("PUB_LOGITS", defaults=dict(T=4.0))
class Logits(Published):
    def compare(self, student, teacher, more):
        warmup = min(more["epoch"] / 20, 1.0)
        return warmup * F.mse_loss(student[0], teacher[0])


@register("PUB_ATTENTION")
class Attention(Published):
    def compare(self, student, teacher, more):
        maps = [self.attention(output[1]["feats"][-1]) for output in (student, teacher)]
        return (maps[0] - maps[1]).pow(2).mean()

    def attention(self, feature):
        return F.normalize(feature.pow(2).mean(1).view(feature.size(0), -1))


@register("PUB_POOLED")
class Pooled(Published):
    def compare(self, student, teacher, more):
        grams = []
        for _, features in (student, teacher):
            pooled = F.normalize(features["pooled_feat"].view(features["pooled_feat"].size(0), -1))
            grams.append(pooled @ pooled.t())
        return F.smooth_l1_loss(*grams)


@register("PUB_FLAT")
class Flat(Published):
    def compare(self, student, teacher, more):
        grams = []
        for _, features in (student, teacher):
            flat = features["feats"][-1].view(features["feats"][-1].size(0), -1)
            grams.append(F.normalize(torch.mm(flat, flat.t())))
        return (grams[0] - grams[1]).pow(2).mean()


@register("PUB_CHANNELS")
class Channels(Published):
    def compare(self, student, teacher, more):
        loss = 0.0
        for a, b in zip(student[1]["feats"][1:], teacher[1]["feats"][1:], strict=True):
            first = F.normalize(a.view(a.shape[0], a.shape[1], -1), dim=2)
            second = F.normalize(b.view(b.shape[0], b.shape[1], -1), dim=2)
            loss = loss + (first.pow(2).mean() - (first[:, :1] * second[:, :1]).mean())
        return loss


@register("PUB_DECOMPOSED", defaults=dict(K=1))
class Decomposed(Published):
    def compare(self, student, teacher, more):
        vectors = []
        for _, features in (student, teacher):
            feature = features["feats"][1]
            matrix = feature.view(feature.size(0), feature.size(1), -1).float()
            vectors.append(torch.linalg.svd(matrix, full_matrices=False)[1][:, :1])
        return F.mse_loss(*vectors)


@register("PUB_HINT", defaults=dict(HINT_LAYER=1, INPUT_SIZE=[8, 8]))
class Hint(Published):
    """As those that import the connector and the shapes from `_common`."""

    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher, cfg)
        self.layer = cfg.PUB_HINT.HINT_LAYER
        shapes = get_feat_shapes(self.student, self.teacher, cfg.PUB_HINT.INPUT_SIZE)
        self.conv_reg = ConvReg(shapes[0][self.layer], shapes[1][self.layer])

    def get_learnable_parameters(self):
        return super().get_learnable_parameters() + list(self.conv_reg.parameters())

    def get_extra_parameters(self):
        return sum(parameter.numel() for parameter in self.conv_reg.parameters())

    def compare(self, student, teacher, more):
        hint = self.conv_reg(student[1]["feats"][self.layer])
        wanted = teacher[1]["feats"][self.layer]
        return F.mse_loss(hint.view(len(hint), -1), wanted.view(len(wanted), -1))


@register("PUB_VARIANCE")
class Variance(Published):
    """Regressors in a ModuleList, and learned scales."""

    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher, cfg)
        shapes = get_feat_shapes(student, teacher, (8, 8))
        pairs = list(zip(*shapes, strict=True))
        self.regressors = nn.ModuleList([nn.Conv2d(s[1], t[1], 1, bias=False) for s, t in pairs])
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(t[1])) for _, t in pairs])

    def compare(self, student, teacher, more):
        loss = 0.0
        maps = zip(student[1]["feats"], teacher[1]["feats"], strict=True)
        parts = zip(maps, self.regressors, self.scales, strict=True)
        for (a, b), regressor, scale in parts:
            variance = F.softplus(scale).view(1, -1, 1, 1)
            loss = loss + ((regressor(a) - b).pow(2) / variance + variance.log()).mean()
        return loss


@register("PUB_CONNECTED")
class Connected(Published):
    """Asks the networks for channels and batch norms, and overrides `train`."""

    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher, cfg)
        channels_student = student.get_stage_channels()
        channels_teacher = teacher.get_stage_channels()
        pairs = zip(channels_student, channels_teacher, strict=True)
        self.connectors = nn.ModuleList([nn.Conv2d(s, t, 1) for s, t in pairs])
        for i, norm in enumerate(teacher.get_bn_before_relu()):
            self.register_buffer(f"margin{i}", -norm.weight.detach().abs().view(1, -1, 1, 1))

    def train(self, mode=True):
        super().train(mode)
        self.teacher.eval()
        return self

    def get_learnable_parameters(self):
        return super().get_learnable_parameters() + list(self.connectors.parameters())

    def compare(self, student, teacher, more):
        hint = self.connectors[-1](student[1]["preact_feats"][-1])
        wanted = torch.max(teacher[1]["preact_feats"][-1], self.margin0)
        loss = F.mse_loss(hint, wanted, reduction="none")
        return loss.view(loss.size(0), -1).sum(1).mean() / 1000


@register("PUB_REVIEW", defaults=dict(SHAPES=[1, 8]))
class Review(Published):
    """Fuses feature maps from the last to the first; its modules end in a batch norm."""

    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher, cfg)
        self.shapes = cfg.PUB_REVIEW.SHAPES
        self.fuse = nn.ModuleList([nn.Sequential(nn.Conv2d(6, 12, 1), nn.BatchNorm2d(12))] * 2)

    def get_learnable_parameters(self):
        return super().get_learnable_parameters() + list(self.fuse.parameters())

    def compare(self, student, teacher, more):
        loss = 0.0
        maps = zip(student[1]["feats"][::-1], teacher[1]["feats"][::-1], strict=True)
        for fuse, (a, b) in zip(self.fuse, maps, strict=True):
            fused = F.interpolate(fuse(a), b.shape[2:], mode="nearest")
            pooled = F.adaptive_avg_pool2d(fused, 4).view(len(a), 12, 16)
            loss = loss + F.mse_loss(pooled, F.adaptive_avg_pool2d(b, 4).view(len(b), 12, 16))
        return min(more["epoch"] / 20, 1.0) * loss


@register("PUB_IMAGE")
class Image(Published):
    """Flattens the images themselves, and takes neither `epoch` nor `index`."""

    def forward_train(self, image, target):
        flat = image.view(image.size(0), -1)
        logits, _ = self.student(image)
        weight = flat.var(1).mean()
        return logits, {"loss_ce": F.cross_entropy(logits, target) * (1 + weight)}

    def forward_test(self, image):
        logits, features = self.student(image)
        image.view(image.size(0), -1)
        features["feats"][-1].view(image.size(0), -1)
        return logits


@register("PUB_CONTRAST")
class Contrast(Published):
    """Needs indices of other images, which only a data loader of its own would give."""

    def __init__(self, student, teacher, cfg, num_data):
        raise AssertionError("the constructor must not run")

    def forward_train(self, image, target, index, contrastive_index, **kwargs):
        raise AssertionError("no step must run")
