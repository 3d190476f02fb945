"""A plugin for tests: a part of CIFAR-100, for which the published teachers are known."""

from edkd.dataset import dataset_dict
from edkd.dataset.augment import CropFlip
from edkd.dataset.resident import Images, resident_dataset
from edkd.registry import DATASETS

TRAINING_IMAGES = 128
TEST_IMAGES = 400


def first(number, images):
    """Some of the images."""
    return Images(images.image[:number], images.target[:number])


@DATASETS.register("cifar100_part", family="cifar", has_published_weights=True)
def cifar100_part(cfg, device):
    """The first images of each part."""
    whole = dataset_dict["cifar100"].load(cfg, device)
    train = first(TRAINING_IMAGES, whole.train.images)
    test = first(TEST_IMAGES, whole.test.images)
    info = whole.info
    return resident_dataset(
        cfg, device, train, test, CropFlip(), info.mean, info.std, info.class_names
    )
