"""Loops in notebooks, from public reports: batches, networks and optimizers of other forms."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Subset, SubsetRandomSampler, TensorDataset

import edkd
from edkd.errors import UserError
from edkd.notebook import (
    DML,
    MLP,
    HintonDistiller,
    KDLoss,
    compute_dml_loss,
    evaluate_dml_models,
    train_epoch_dml,
    validate_dml,
)

IMAGE = torch.randn(32, 20, generator=torch.Generator().manual_seed(0))
TARGET = IMAGE[:, :3].argmax(1)
PAIRS = TensorDataset(IMAGE, TARGET)
OTHERS = TensorDataset(IMAGE.flip(0) + 0, TARGET.flip(0) + 0)
CE = nn.CrossEntropyLoss()
KL = nn.KLDivLoss(reduction="batchmean")


def net():
    return MLP(20, 3, 8)


def sgd(*networks, lr=0.1):
    return torch.optim.SGD([p for network in networks for p in network.parameters()], lr)


def loader(data=PAIRS, size=8, **options):
    return DataLoader(data, size, **options)


def batches(image, target):
    return [(image[:16], target[:16]), (image[16:], target[16:])]


def weights(model):
    return [value.clone() for value in model.state_dict().values()]


class Pictures(torch.utils.data.Dataset):
    """Pictures of PIL, without ToTensor."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        from PIL import Image

        return Image.new("RGB", (8, 8)), index % 3


# The four ways to run a loop; each takes the batches of training.


def by_distill(train, tmp_path):
    """`edkd.distill`."""
    settings = dict(epochs=1, device="cpu", amp="off", output=tmp_path, num_classes=3)
    edkd.distill(net(), net(), train, loader(OTHERS), method="KD", **settings)


def by_cohort(train, tmp_path):
    """`DML`."""
    students = [net(), net()]
    distiller = DML(students, train, loader(OTHERS), [sgd(student) for student in students])
    distiller.train_students(1, plot_losses=False, save_model=False)


def by_hinton(train, tmp_path):
    """`HintonDistiller`."""
    student = net()
    distiller = HintonDistiller(logdir=tmp_path)
    distiller.train_step(student, net(), train, CE, KL, sgd(student))


def by_own_loop(train, tmp_path):
    """`train_epoch_dml`."""
    models = [net(), net()]
    train_epoch_dml(models, [sgd(model) for model in models], train, "cpu")


def by_evaluation(train, tmp_path):
    """`evaluate_dml_models`."""
    evaluate_dml_models([net(), net()], train, "cpu")


WAYS = [by_distill, by_cohort, by_hinton, by_own_loop, by_evaluation]


def as_dictionary(items):
    image, target = torch.utils.data.default_collate(items)
    return {"pixel_values": image, "labels": target}


def as_pictures(items):
    return [item[0] for item in items], torch.tensor([item[1] for item in items])


WITH_NAN = IMAGE.clone()
WITH_NAN[5, 3] = torch.nan

BAD_BATCHES = {
    "dictionary": (
        lambda: loader(collate_fn=as_dictionary),
        r"batch 1.* is a dictionary with the keys pixel_values, labels; expected a pair of tensors",
    ),
    "triple": (
        lambda: loader(TensorDataset(IMAGE, TARGET, torch.arange(32))),
        r"batch 1.* a list of 3 parts \(tensor \(8, 20\), tensor \(8,\), tensor \(8,\)\); expected",
    ),
    "column": (
        lambda: batches(IMAGE, TARGET[:, None]),
        r"torch.int64 of shape \(16, 1\) for 16 images; expected .*; use target.squeeze\(1\)",
    ),
    "float column": (
        lambda: batches(IMAGE, TARGET[:, None].float()),
        r"torch.float32 of shape \(16, 1\) .*; use target.squeeze\(1\).long\(\)",
    ),
    "float class numbers": (
        lambda: batches(IMAGE, TARGET.double()),
        r"torch.float64 of shape \(16,\) for 16 images; expected .*; use target.long\(\)",
    ),
    "one-hot integers": (
        lambda: batches(IMAGE, F.one_hot(TARGET)),
        r"torch.int64 of shape \(16, 3\) .*; for one-hot targets, use target.float\(\)",
    ),
    "several labels": (
        lambda: batches(IMAGE, torch.ones(32, 3)),
        r"not class probabilities: .* sums of the rows are 3 to 3 instead of 1",
    ),
    "logits as targets": (
        lambda: batches(IMAGE, 5 - IMAGE[:, :3]),
        r"targets in .* are not class probabilities",
    ),
    "class number too high": (
        lambda: batches(IMAGE, TARGET + 1),
        "class number 3, but there are 3 classes|returns 3 logits, but the data have 4 classes",
    ),
    "class number below 0": (
        lambda: batches(IMAGE, TARGET - 1),
        "class number -1; class numbers start at 0",
    ),
    "pictures": (
        lambda: loader(Pictures(), 4, collate_fn=as_pictures),
        r"images in .*batch 1.* are a list of 4 parts \(Image.*; add torchvision.*ToTensor",
    ),
    "pictures by default": (
        lambda: loader(Pictures(), 4),
        r"(train_loader|training|evaluation): the data set returns PIL images; add .*ToTensor",
    ),
    "nothing": (
        lambda: loader([(None, 1), (None, 2)], 2),
        "the data set returns items of type NoneType; they must be tensors",
    ),
    "different sizes": (
        lambda: loader([(torch.zeros(3, 8, 8), 0), (torch.zeros(3, 8, 9), 1)], 2),
        r"the items of a batch have different sizes, \[3, 8, 8\] and \[3, 8, 9\]; for images, add",
    ),
    "bytes": (
        lambda: batches((IMAGE * 50 + 100).byte(), TARGET),
        "images in .*batch 1.* are torch.uint8; expected floating-point numbers, normalised",
    ),
    "not a number": (
        lambda: batches(WITH_NAN, TARGET),
        r"images in .*batch 1.* values that are not finite \(image 5 of the batch",
    ),
    "other channels": (
        lambda: [(IMAGE, TARGET), (IMAGE[:, :10], TARGET)],
        r"images in .*batch 2.* have the shape \(10,\), but \(20,\) before",
    ),
}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("kind", BAD_BATCHES)
def test_batches_of_another_form_are_named(kind, way, tmp_path):
    """Reports on many loops: a batch in another form trains wrongly, or ends deep inside of torch.

    Right: one line, which says what was expected and found, in every loop alike.
    """
    make, message = BAD_BATCHES[kind]
    with pytest.raises(UserError, match=message) as error:
        way(make(), tmp_path)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("kind", ["probabilities", "double", "int32"])
def test_batches_of_usual_types_work(kind, way, tmp_path):
    """Reports: `expected scalar type Float but found Double` for data that NumPy made.

    Right: class probabilities (N,C), float64 images and class numbers of any integer type work.
    """
    parts = {
        "probabilities": (IMAGE, F.one_hot(TARGET).double() * 0.7 + 0.1),
        "double": (IMAGE.double(), TARGET),
        "int32": (IMAGE, TARGET.int()),
    }
    way(batches(*parts[kind]), tmp_path)


@pytest.mark.parametrize("way", [by_hinton, by_own_loop, by_evaluation])
def test_a_generator_that_is_used_up_is_named(way, tmp_path):
    """A report of this kind: from the second epoch on, the loop runs over nothing.

    Right: one line that says why there is no batch. The first pass works.
    """
    once = iter(batches(IMAGE, TARGET))
    way(once, tmp_path)
    with pytest.raises(UserError, match="the loader yields no batches any more; it can be read on"):
        way(once, tmp_path)
    with pytest.raises(UserError, match="train_loader is an iterator, which can be read once"):
        by_distill(iter(batches(IMAGE, TARGET)), tmp_path)


# Networks.


def loops_of(student, teacher, tmp_path):
    """Loops that train a student, by name."""
    settings = dict(epochs=1, device="cpu", amp="off", output=tmp_path)
    return {
        "distill": lambda: edkd.distill(
            student, teacher, loader(), loader(OTHERS), method="KD", **settings
        ),
        "hinton": lambda: HintonDistiller(logdir=tmp_path).train_step(
            student, teacher, loader(), CE, KL, sgd(student)
        ),
    }


@pytest.mark.parametrize("name", ["distill", "hinton"])
def test_networks_that_cannot_be_a_pair(name, tmp_path):
    """Reports: one variable for both networks, a shared trunk, a frozen student; it "trains".

    Right: one line before anything is written.
    """
    teacher = net()
    frozen = net().requires_grad_(False)
    sharing = net()
    sharing.linear1 = teacher.linear1
    for student, message in (
        (teacher, "one network is given twice; use copy.deepcopy"),
        (sharing, r"the student MLP and the teacher share 2 parameters \(linear1.weight, linear1"),
        (frozen, "the student MLP has no parameter that requires a gradient"),
        (MLP(20, 3, 8).to("meta"), "on the device meta and has no weights"),
    ):
        with pytest.raises(UserError, match=message):
            loops_of(student, teacher, tmp_path)[name]()
    assert list(tmp_path.iterdir()) == []


def test_a_cohort_with_one_network_twice():
    """A report of this kind: `[net] * 2` makes one network, whose divergence from itself is 0."""
    model = net()
    for call in (
        lambda: train_epoch_dml([model, model], [sgd(model), sgd(model)], loader(), "cpu"),
        lambda: compute_dml_loss([model, model], IMAGE, TARGET, 0),
        lambda: DML([model] * 2, loader(), loader(OTHERS), [sgd(model)] * 2).train_students(1),
    ):
        with pytest.raises(UserError, match="one network is given twice"):
            call()


class Softmax(MLP):
    """Ends with softmax."""

    def forward(self, x):
        return super().forward(x).softmax(1)


@pytest.mark.parametrize("name", ["distill", "hinton"])
def test_probabilities_instead_of_logits_are_named(name, tmp_path, capsys):
    """Reports: the network ends with softmax, the loss applies it again, and it hardly learns.

    Right: one warning for each network, not one in each epoch. Log-probabilities are as good as
    logits, and cause none.
    """
    run = loops_of(Softmax(20, 3, 8), net(), tmp_path)[name]
    run()
    error = capsys.readouterr().err
    assert error.count("the student Softmax returns probabilities; methods expect logits") == 1

    if name == "hinton":
        run()
    loops_of(net(), nn.Sequential(net(), nn.LogSoftmax(1)), tmp_path / "log")["distill"]()
    assert "probabilities" not in capsys.readouterr().err


def test_other_outputs_are_named():
    """Reports: a model of another library returns an object with `logits`."""

    class Wrapped(MLP):
        def forward(self, x):
            return {"logits": super().forward(x)}

    student = Wrapped(20, 3, 8)
    with pytest.raises(UserError, match="Wrapped returned a dictionary with the keys logits for"):
        evaluate_dml_models([student], loader(), "cpu")


def test_a_call_within_no_grad_trains(tmp_path):
    """A report of this kind: a cell left `torch.no_grad()` or `inference_mode` on.

    Right: `distill` decides itself what needs a gradient.
    """
    student = net()
    before = weights(student)
    with torch.no_grad():
        loops_of(student, net(), tmp_path)["distill"]()
    assert not any(torch.equal(a, b) for a, b in zip(before, weights(student), strict=True))

    with torch.inference_mode():
        inside = net()
    with pytest.raises(UserError, match="was made in torch.inference_mode"):
        loops_of(inside, net(), tmp_path)["distill"]()


# Optimizers.


def test_optimizers_of_other_networks(tmp_path):
    """Reports: the optimizer holds the teacher, or an older network; the student never changes.

    Right: one line. A loss with own parameters may add them to the optimizer of an own loop.
    """
    student, teacher = net(), net()

    def hinton(optimizer):
        HintonDistiller(logdir=tmp_path).train_step(student, teacher, loader(), CE, KL, optimizer)

    def distill(optimizer):
        settings = dict(epochs=1, device="cpu", output=tmp_path, method="KD")
        data = (loader(), loader(OTHERS))
        edkd.distill(student, teacher, *data, optimizer=optimizer, **settings)

    with pytest.raises(UserError, match="holds none of its parameters"):
        hinton(sgd(teacher))
    with pytest.raises(UserError, match=r"holds parameters of another network \(MLP\)"):
        hinton(sgd(student, teacher))
    for wrong in (sgd(teacher), sgd(student, teacher)):
        with pytest.raises(UserError, match="an optimizer holds 6 parameters that are not the stu"):
            distill(wrong)

    hinton(sgd(student, nn.Linear(2, 2)))
    old = sgd(student)
    student.linear3 = nn.Linear(8, 3)
    with pytest.raises(UserError, match="2 parameters that are not the student's.*after the last"):
        distill(old)


def test_optimizers_in_another_order():
    """Right: one line; `zero_grad` of the other optimizer would remove the gradients."""
    models = [net(), net()]
    optimizers = [sgd(model) for model in reversed(models)]
    with pytest.raises(UserError, match="holds none of its parameters"):
        train_epoch_dml(models, optimizers, loader(), "cpu")
    both = [sgd(*models), sgd(models[1])]
    with pytest.raises(UserError, match="parameters of another network"):
        train_epoch_dml(models, both, loader(), "cpu")
    with pytest.raises(UserError, match="2 students need 2 optimizers, not 1"):
        train_epoch_dml(models, optimizers[:1], loader(), "cpu")


def test_an_optimizer_of_a_part_of_the_network(tmp_path, capsys):
    """Only the last layer is trained: this is a usual wish, and a usual mistake.

    Right: a warning, and the other parameters keep their values.
    """
    student = net()
    before = copy.deepcopy(student.state_dict())
    optimizer = torch.optim.SGD(student.linear3.parameters(), 0.1)
    settings = dict(epochs=1, device="cpu", amp="off", output=tmp_path, method="KD")
    edkd.distill(student, net(), loader(), loader(OTHERS), optimizer=optimizer, **settings)
    error = capsys.readouterr().err
    assert "4 parameters (linear1.weight, linear1.bias, ...) of the student, of 6, are" in error
    changed = {key for key, value in student.state_dict().items() if (value != before[key]).any()}
    assert changed == {"linear3.weight", "linear3.bias"}
    assert student.linear1.weight.grad is None

    student.linear1.requires_grad_(False)
    student.linear2.requires_grad_(False)
    HintonDistiller(logdir=tmp_path).train_step(student, net(), loader(), CE, KL, optimizer)
    assert "no optimizer" not in capsys.readouterr().err


# Loaders.


def test_the_same_images_for_training_and_test(tmp_path, capsys):
    """Reports: 100 % in the notebook, because the test set was the training set.

    Right: a warning. Splits of one data set by subsets or by samplers are none of these.
    """
    settings = dict(epochs=1, device="cpu", amp="off", output=tmp_path, method="NONE")
    halves = Subset(PAIRS, range(16)), Subset(PAIRS, range(16, 32))
    sampled = [loader(sampler=SubsetRandomSampler(half.indices)) for half in halves]

    def warning(name, train, val, test=None):
        edkd.distill(net(), None, train, val, test_loader=test, name=name, **settings)
        lines = capsys.readouterr().err.splitlines()
        return [line for line in lines if "images of" in line]

    same = loader()
    assert "val_loader has all of the images of train_loader" in warning("a", same, same)[0]
    assert "val_loader has 32 of the images of train_loader" in warning("b", same, loader())[0]
    twin = TensorDataset(IMAGE, TARGET)
    assert "has 32 of the images" in warning("c", same, loader(twin))[0]
    overlap = loader(Subset(PAIRS, range(12, 32)))
    assert "has 4 of the images" in warning("d", loader(halves[0]), overlap)[0]
    (line,) = warning("e", loader(OTHERS), same, loader())
    assert "test_loader has 32 of the images of val_loader" in line

    assert warning("f", loader(halves[0]), loader(halves[1])) == []
    assert warning("g", *sampled) == []
    assert warning("h", same, loader(OTHERS)) == []


def test_the_same_image_folder_for_training_and_test(tmp_path, capsys):
    """The same, with two data sets that read one folder, for example with other transforms."""
    from PIL import Image
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import ToTensor

    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)

    train, val = (ImageFolder(tmp_path / "images", ToTensor()) for _ in range(2))
    student = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    settings = dict(epochs=1, device="cpu", output=tmp_path / "output", method="NONE")
    edkd.distill(student, None, loader(train, 4), loader(val, 4), **settings)
    assert "val_loader has 4 of the images of train_loader" in capsys.readouterr().err


def test_validation_images_with_other_channels(tmp_path):
    """A report of this kind: grey images for training, colour images for the test."""
    grey, colour = torch.zeros(8, 1, 4, 4), torch.zeros(8, 3, 4, 4)
    data = [loader(TensorDataset(image, TARGET[:8])) for image in (grey, colour)]
    student = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(UserError, match=r"val_loader has images of shape \(3, 4, 4\), but train_l"):
        edkd.distill(student, None, *data, method="NONE", output=tmp_path, device="cpu")


# The loss alone.


def test_the_loss_with_its_arguments_in_another_order():
    """Reports: (student, teacher, target), as other systems have it; or another number of classes.

    Right: one line with the shapes. Class probabilities are possible.
    """
    student, teacher = torch.randn(8, 3), torch.randn(8, 3)
    loss = KDLoss()
    with pytest.raises(UserError, match=r"the order is \(student_pred, target, teacher_pred\)"):
        loss(student, teacher, TARGET[:8])
    with pytest.raises(UserError, match=r"shape \(8, 3\), teacher_pred \(8, 4\)"):
        loss(student, TARGET[:8], torch.randn(8, 4))
    with pytest.raises(UserError, match=r"use target.squeeze\(1\)"):
        loss(student, TARGET[:8, None], teacher)
    hard, soft = TARGET[:8], F.one_hot(TARGET[:8]).double()
    torch.testing.assert_close(loss(student, hard, teacher), loss(student, soft, teacher))


def test_a_validation_of_one_pass_warns_of_nothing():
    """The usual loop is silent."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        validate_dml([net(), net()], loader(), "cpu")
