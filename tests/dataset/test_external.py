"""Loaders of a user: reproducible, numbered where possible, checked."""

import random
import traceback

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

from edkd.dataset.external import external_dataset
from edkd.errors import UserError, WorkerError

CPU = torch.device("cpu")
IMAGE = torch.arange(20.0)[:, None, None, None].expand(20, 1, 5, 7).contiguous()
TARGET = torch.arange(20) % 4
PAIRS = TensorDataset(IMAGE, TARGET)


class Noisy(Dataset):
    """Random transforms from all global generators."""

    classes = ["a", "b", "c", "d"]

    def __init__(self, fault=None):
        self.fault = fault

    def __len__(self):
        return 20

    def __getitem__(self, index):
        if self.fault:
            raise self.fault
        noise = torch.rand(1).item() + np.random.rand() + random.random()
        return IMAGE[index] + noise, int(TARGET[index])


class Stream(IterableDataset):
    """The same without numbers."""

    def __iter__(self):
        data = Noisy()
        for index in torch.randperm(20).tolist():
            yield data[index]


class Shuffled:
    """No DataLoader, no length; draws lazily."""

    def __iter__(self):
        for _ in range(5):
            index = torch.randint(20, (4,))
            yield IMAGE[index] + random.random(), TARGET[index]


def loader(data=PAIRS, **options):
    return DataLoader(data, **{"batch_size": 6, "shuffle": True} | options)


def wrap(train, val=None, **options):
    return external_dataset(train, val or loader(shuffle=False), **options)


def images_of(batches):
    return torch.cat([batch.image for batch in batches])


def epoch_of(data, epoch, first=0, disturb=False):
    """The batches; with `disturb`, somebody else draws random numbers in between."""
    batches = []
    for inputs in data.train.inputs(epoch, first):
        batches.append(data.train.batch(*inputs))
        if disturb:
            torch.rand(3), np.random.rand(), random.random()
    return batches


def test_the_index_is_that_of_the_data_set():
    data = wrap(loader())
    assert (len(data.train), data.train.num_images, data.train.has_index) == (4, 20, True)
    batches = epoch_of(data, 1)
    index = torch.cat([batch.index for batch in batches])
    assert sorted(index.tolist()) == list(range(20))
    assert index.tolist() != list(range(20))
    assert torch.equal(images_of(batches), IMAGE[index])
    assert torch.equal(torch.cat([batch.target for batch in batches]), TARGET[index])


def test_batches_are_on_the_device_in_channels_last():
    pairs = TensorDataset(IMAGE.expand(-1, 3, -1, -1).half(), TARGET.int())
    data = wrap(loader(pairs), loader(pairs))
    batch = next(data.train.epoch(1))
    assert batch.image.dtype == torch.float32
    assert batch.image.is_contiguous(memory_format=torch.channels_last)
    assert batch.target.dtype == torch.int64
    assert batch.views["weak"].image is batch.image
    with pytest.raises(UserError, match="no view 'strong'"):
        data.train.use_views(["weak", "strong"])


SOURCES = {
    "map": lambda: loader(Noisy()),
    "workers": lambda: loader(Noisy(), num_workers=2, persistent_workers=True),
    "generator": lambda: loader(Noisy(), generator=torch.Generator()),
    "stream": lambda: loader(Stream(), shuffle=None),
    "lazy": Shuffled,
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_an_epoch_is_a_function_of_seed_and_epoch(name):
    """It can start at any batch, whatever else draws random numbers."""
    torch.manual_seed(1)
    data = wrap(SOURCES[name](), seed=3)
    torch.manual_seed(2)
    again = wrap(SOURCES[name](), seed=3)
    whole = epoch_of(data, 2)
    assert torch.equal(images_of(whole), images_of(epoch_of(again, 2, disturb=True)))

    torch.manual_seed(5)
    rest = epoch_of(again, 2, first=2, disturb=True)
    assert torch.equal(images_of(whole[2:]), images_of(rest))
    assert not torch.equal(images_of(whole), images_of(epoch_of(data, 3)))
    if name in ("map", "lazy"):
        other = wrap(SOURCES[name](), seed=4)
        assert not torch.equal(images_of(whole), images_of(epoch_of(other, 2)))


def test_workers_change_nothing():
    plain = epoch_of(wrap(loader(Noisy())), 1)
    workers = epoch_of(wrap(loader(Noisy(), num_workers=1)), 1)
    assert torch.equal(images_of(plain), images_of(workers))


def test_reading_leaves_the_global_generators_alone():
    data = wrap(loader(Noisy()))
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    epoch_of(data, 1)
    assert torch.equal(torch.rand(1), expected)


def test_the_settings_of_a_loader_are_kept():
    def collate(items):
        image, target = zip(*items, strict=True)
        return -torch.stack(image), torch.stack(target)

    chosen = SubsetRandomSampler([3, 5, 7, 9, 11])
    train = DataLoader(PAIRS, 2, sampler=chosen, drop_last=True, collate_fn=collate)
    data = wrap(train)
    batches = epoch_of(data, 1)
    assert (len(data.train), data.train.num_images, data.info.num_images) == (2, 4, 20)
    assert {i for batch in batches for i in batch.index.tolist()} < {3, 5, 7, 9, 11}
    assert torch.equal(images_of(batches), -IMAGE[torch.cat([b.index for b in batches])])

    batch_sampler = [[0, 1, 2], [7], [5, 3]]
    data = wrap(DataLoader(PAIRS, batch_sampler=batch_sampler))
    assert [batch.index.tolist() for batch in epoch_of(data, 1)] == batch_sampler


def test_set_epoch_is_called():
    class Sampler(list):
        def set_epoch(self, epoch):
            self[:] = [epoch, 0]

    data = wrap(DataLoader(PAIRS, 2, sampler=Sampler([0, 0])))
    assert [epoch_of(data, epoch)[0].index.tolist() for epoch in (1, 7)] == [[1, 0], [7, 0]]


def test_any_iterable_of_batches():
    batches = [(IMAGE[:12], TARGET[:12]), (IMAGE[12:], TARGET[12:])]
    data = wrap(batches, val=batches)
    assert (len(data.train), data.train.num_images, data.train.has_index) == (2, 20, False)
    assert next(data.train.epoch(1)).index is None
    assert (data.num_classes, data.info.targets, data.info.class_names) == (4, None, ())
    assert data.test.num_images == 20


def test_facts():
    info = wrap(loader()).info
    assert (info.num_classes, info.num_images) == (4, 20)
    assert torch.equal(info.targets, TARGET)
    assert info.image_shape == (1, 5, 7)
    assert info.mean == info.class_names == ()

    info = wrap(loader(Subset(Noisy(), range(10, 20)))).info
    assert (info.num_classes, info.num_images) == (4, 10)
    assert info.class_names == ("a", "b", "c", "d")

    few = loader(Subset(PAIRS, [0, 5, 6]))
    info = wrap(few, few).info
    assert info.targets.tolist() == [0, 1, 2]
    assert wrap(loader(), num_classes=7).num_classes == 7


def test_targets_changed_by_a_transform_are_read():
    data = Noisy()
    data.targets = TARGET.tolist()
    data.target_transform = lambda target: target % 2
    data.classes = list("abcdefgh")
    info = wrap(loader(data)).info
    assert (info.num_classes, info.targets, info.class_names) == (4, None, ())


def test_splits():
    data = wrap(loader(), loader())
    assert data.val is None
    data = external_dataset(loader(), loader(), test_loader=loader(Subset(PAIRS, range(8))))
    assert (data.val.num_images, data.test.num_images) == (20, 8)


def test_evaluation_repeats_itself():
    data = wrap(loader(), loader(Noisy()))
    assert torch.equal(images_of(data.test.epoch()), images_of(data.test.epoch()))


def test_class_probabilities():
    soft = torch.full((20, 3), 1 / 3, dtype=torch.float64)
    data = wrap(loader(TensorDataset(IMAGE, soft)), loader(Subset(PAIRS, [0, 1, 2, 4])))
    assert data.num_classes == 3
    target = next(data.train.epoch(1)).target
    assert (target.dtype, target.shape) == (torch.float32, (6, 3))


def as_dict(items):
    return {"image": IMAGE[:2], "label": TARGET[:2]}


def as_triple(items):
    return IMAGE[:2], TARGET[:2], TARGET[:2]


def with_list(items):
    return IMAGE[:2], [1, 2]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (PAIRS, "train_loader is a data set; wrap it"),
        (None, "train_loader is of type NoneType; expected a DataLoader"),
        ([], "train_loader yields no batches"),
        (iter([(IMAGE, TARGET)]), "train_loader is an iterator, which can be read once"),
        (loader(batch_size=21, drop_last=True), "train_loader yields no batches"),
        (loader(collate_fn=as_dict), "batch 1 of train_loader is a dictionary with the keys image"),
        (
            loader(collate_fn=as_triple),
            r"is a tuple of 3 parts \(tensor \(2, 1, 5, 7\), tensor \(2,\), .*; expected a pair of",
        ),
        (loader(collate_fn=with_list), "targets in batch 1 of train_loader are a list of 2 parts"),
        ([(IMAGE, TARGET[:3])], r"torch.int64 of shape \(3,\) for 20 images; expected integer"),
        ([(IMAGE, TARGET.float())], r"targets in batch 1 of train_loader are torch.float32 of"),
        ([(IMAGE, TARGET[:, None])], r"of shape \(20, 1\) for 20 images"),
        ([(IMAGE, TARGET > 1)], "torch.bool"),
        ([(IMAGE, TARGET - 1)], "has class number -1; class numbers start at 0"),
        ([(IMAGE, TARGET), (IMAGE[0, 0, 0], TARGET[:7])], r"images in batch 2 .* have the shape"),
    ],
)
def test_an_unusable_loader_is_refused(train, message):
    with pytest.raises(UserError, match=message) as error:
        wrap(train)
    assert "\n" not in str(error.value)


def test_a_class_number_that_is_too_high_is_refused():
    for train in (loader(), loader(Noisy()), [(IMAGE, TARGET)]):
        with pytest.raises(UserError, match="class number 3, but there are 3 classes, numbered"):
            epoch_of(wrap(train, loader(Subset(PAIRS, [0, 1, 2])), num_classes=3), 1)
    with pytest.raises(UserError, match="the data set of val_loader has class number 3"):
        wrap(loader(Subset(PAIRS, [0, 1, 2])), loader())
    soft = [(IMAGE, torch.full((20, 5), 0.2))]
    with pytest.raises(UserError, match="have 5 class probabilities, but there are 4 classes"):
        wrap(loader(), soft)


def test_epochs_of_another_length_are_refused():
    batches = [(IMAGE, TARGET)] * 3
    data = wrap(batches)
    batches.pop()
    with pytest.raises(UserError, match="train_loader yields fewer than 3 batches"):
        epoch_of(data, 1)
    batches += batches
    with pytest.raises(UserError, match="train_loader yields more than 3 batches"):
        epoch_of(data, 1)

    keys = [[0, 1], [2]]
    data = wrap(DataLoader(PAIRS, batch_sampler=keys))
    keys.append([3])
    with pytest.raises(UserError, match="the batch sampler of train_loader yields 3 batches in"):
        epoch_of(data, 2)


def drop_odd(items):
    image, target = zip(*[item for item in items if item[1] % 2 == 0], strict=True)
    return torch.stack(image), torch.stack(target)


def test_a_collate_function_that_drops_items():
    """It trains, without an index; an accuracy would be wrong."""
    data = wrap(loader(collate_fn=drop_odd, shuffle=False))
    assert epoch_of(data, 1)[0].index is None
    with pytest.raises(UserError, match="batch 1 of val_loader has 3 images for 6 items"):
        wrap(loader(), loader(collate_fn=drop_odd, shuffle=False))


def test_a_failing_worker_is_named():
    train = loader(Noisy(fault=LookupError("no such colour")), num_workers=1)
    with pytest.raises(WorkerError, match="raised LookupError: no such colour; try num_wo") as info:
        wrap(train, num_classes=4)
    traceback.clear_frames(info.value.__cause__.__traceback__)  # ends the worker without a wait

    with pytest.raises(LookupError, match="no such colour"):
        wrap(loader(Noisy(fault=LookupError("no such colour"))), num_classes=4)
