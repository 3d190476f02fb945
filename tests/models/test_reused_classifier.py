"""A student with its teacher's classifier: its name, its file, and what is done with that file."""

from pathlib import Path

import pytest
import torch
from torch import nn

import edkd
from edkd.distillers import construct, find_method
from edkd.engine.checkpoint import load_checkpoint
from edkd.errors import UserError
from edkd.models import check_model, get_model, is_qualified, library_of, published_weights
from edkd.reused_classifier import Projection, ReusedClassifier, name_with, parts_of
from tests.small import TinyNet, TokenNet, batch, config, info, make_distiller

PROJECTION = Projection(256, 128, 8, 4, 2)
NAME = "timm/vit.x_y+simkd-256to128x8x4f2"


def test_a_name_holds_the_projection():
    assert name_with("timm/vit.x_y", PROJECTION) == NAME
    assert parts_of(NAME) == ("timm/vit.x_y", PROJECTION)
    assert parts_of("resnet8x4") == ("resnet8x4", None)
    assert library_of(NAME)[0] is None
    assert is_qualified("resnet8x4+simkd-256to256x8x8f2")
    assert published_weights("cifar", "resnet8x4+simkd-256to256x8x8f2") is None
    with pytest.raises(UserError, match="unknown cifar model 'resnt8'.*did you mean 'resnet8'"):
        check_model("cifar", "resnt8+simkd-64to64x8x8f2")


@pytest.mark.parametrize("student", ["resnet8", "deit_micro_p8", "torchvision/shufflenet_v2_x0_5"])
def test_a_network_is_built_from_its_name(student):
    data = info()
    data = type(data)(10, 40, torch.arange(40) % 10, (3, 32, 32))
    teacher = get_model("cifar", "vgg8", 10)
    cfg = config("DISTILLER.TYPE", "SIMKD", "SIMKD.FACTOR", 4)
    networks = (get_model("cifar", student, 10), teacher)
    distiller = construct(find_method("SIMKD"), *networks, cfg, data).eval()
    cfg.defrost()
    cfg.DISTILLER.STUDENT = student
    (name,) = distiller.architectures(cfg)

    again = get_model("cifar", name, 10).eval()
    again.load_state_dict(distiller.deployable().state_dict())
    image = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(again(image)[0], distiller.forward_test(image))
    assert torch.equal(again.classifier.weight, teacher.classifier.weight)


def test_the_classifier_stays_and_the_students_own_is_left_out():
    distiller = make_distiller("SIMKD").train()
    reused = distiller.student
    names = [name for name, _ in reused.named_parameters()]
    assert {name.split(".")[0] for name in names} == {"student", "projector"}
    assert not any(name.startswith("student.fc") for name in names)

    before = reused.classifier.weight.clone()
    optimizer = torch.optim.SGD(distiller.get_learnable_parameters(), 0.1, weight_decay=0.1)
    _, losses = distiller.training_step(batch())
    sum(losses.values()).backward()
    optimizer.step()
    assert losses["loss_ce"] == 0
    assert torch.equal(reused.classifier.weight, before)
    assert torch.equal(before, distiller.teacher.fc.weight)


def test_both_heads_of_a_student_with_a_distillation_token_are_left_out():
    network = ReusedClassifier(TokenNet(6), Projection(6, 12, 8, 8, 2), 4).eval()
    assert isinstance(network.student.fc, nn.Identity)
    assert isinstance(network.student.fc_dist, nn.Identity)
    assert network(torch.randn(2, 3, 8, 8))[0].shape == (2, 4)


def test_maps_of_unequal_size_are_pooled_to_the_smaller():
    for size, expected in [((4, 4), (4, 4)), ((16, 16), (8, 8))]:
        network = ReusedClassifier(TinyNet(6), Projection(6, 12, *size, 2), 4)
        _, features = network(torch.randn(2, 3, 8, 8))
        assert features["feats"][-1].shape == (2, 12, *expected)
    with pytest.raises(UserError, match="factor 13 has no channel"):
        ReusedClassifier(TinyNet(6), Projection(6, 12, 4, 4, 13), 4)


def test_a_run_is_evaluated_resumed_and_distilled_again(train_tiny, tool, tmp_path):
    simkd = ["DISTILLER.TYPE", "SIMKD", "SOLVER.WEIGHT_DECAY", "0.1"]
    assert train_tiny("first", *simkd, "SOLVER.EPOCHS", "1").code == 0
    assert train_tiny("first", *simkd, "--resume").code == 0
    run = tmp_path / "distill" / "first"
    file = run / "student_best"
    content = load_checkpoint(file)
    name = content["architecture"]
    assert name.startswith("narrow+simkd-")

    assert tool("eval", str(run)).out.startswith(f"{name} on tiny: top-1 {content['accuracy']:.2f}")

    # As the teacher of another run, by its name alone.
    for number, method in enumerate(("KD", "SIMKD", "SRRL")):
        teacher = ["DISTILLER.TEACHER", name, "DISTILLER.TEACHER_CKPT", str(file)]
        done = train_tiny(f"again {number}", *teacher, "DISTILLER.TYPE", method)
        assert done.code == 0, done.err

    wrong = ["DISTILLER.TEACHER", "narrow", "DISTILLER.TEACHER_CKPT", str(file)]
    done = train_tiny("wrong", *wrong, "DISTILLER.TYPE", "KD")
    assert done.code == 2
    assert f"the file names the model {name}: DISTILLER.TEACHER {name}" in done.err


def test_simkd_is_not_combined():
    with pytest.raises(UserError, match="SIMKD overrides architectures and cannot be combined"):
        find_method("KD+SIMKD")


@pytest.mark.parametrize(("key", "value"), [("TRAIN_ONLY", "head"), ("HEAD_LR_FACTOR", 2.0)])
def test_keys_of_the_head_are_refused(key, value):
    with pytest.raises(UserError, match=f"SOLVER.{key} {value} .* SIMKD does not train it"):
        make_distiller("SIMKD", f"SOLVER.{key}", value)


def test_networks_of_the_caller(tmp_path):
    images = torch.randn(16, 3, 8, 8)
    data = torch.utils.data.TensorDataset(images, torch.arange(16) % 4)
    loader = torch.utils.data.DataLoader(data, batch_size=8)
    student, teacher = TinyNet(6), TinyNet(12)
    result = edkd.distill(
        student, teacher, loader, loader, method="SIMKD", epochs=1, output=tmp_path, num_classes=4
    )
    content = load_checkpoint(Path(result["folder"], "student_best"))
    _, projection = parts_of(content["architecture"])
    network = ReusedClassifier(TinyNet(6), projection, 4)
    network.load_state_dict(content["model"])
    assert isinstance(network.student.fc, nn.Identity)
