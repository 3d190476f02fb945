"""The cached logits of a teacher: those that it computes, found again where nothing has changed."""

import numpy as np
import pytest
import torch

from edkd.dataset.augment import CropFlip
from edkd.engine.checkpoint import fingerprint
from edkd.engine.memo.files import segment_files
from edkd.engine.memo.memo import memo_settings, safe_name
from tests.engine.memo.parts import Roll, make_loader, make_memo, make_teacher, quiet
from tests.small import CPU, config


def segments(root):
    return sorted(path for folder in root.iterdir() for path in segment_files(folder))


def logits_of_epoch(memo, epoch=1):
    """The logits of an epoch, in the order of its images."""
    memo.prepare(epoch, quiet)
    index, _ = memo.loader.order(epoch)
    return memo.tables["logits"][index].clone()


def test_cached_logits_are_the_teachers_bit_for_bit(tmp_path):
    """In batches of the size in which they were computed; of another size, to rounding."""
    memo = make_memo(tmp_path, loader=make_loader(128, batch_size=128))
    cached = logits_of_epoch(memo)
    (batch,) = memo.loader.epoch(1)
    live, _ = memo.teacher(batch.image)
    assert torch.equal(cached, live)
    assert not cached.requires_grad

    again = make_memo(tmp_path, loader=make_loader(128, batch_size=128))
    assert torch.equal(logits_of_epoch(again), cached)

    by_one, _ = memo.teacher(batch.image[:1])
    torch.testing.assert_close(by_one, cached[:1], rtol=0, atol=1e-5)


def test_the_table_changes_with_the_views_of_an_epoch_in_place(tmp_path):
    memo = make_memo(tmp_path)
    table = memo.tables["logits"]
    first = logits_of_epoch(memo, 1)
    second = logits_of_epoch(memo, 2)
    assert memo.tables["logits"] is table
    for epoch, cached in ((1, first), (2, second)):
        index, numbers = memo.loader.order(epoch)
        live = memo.compute(index, numbers["weak"])["logits"]
        torch.testing.assert_close(cached, live, rtol=0, atol=1e-5)
    assert not torch.equal(first, second)


def test_a_second_memo_runs_the_teacher_for_its_sample_alone(tmp_path):
    make_memo(tmp_path).prepare(1, quiet)
    teacher = make_teacher()
    memo = make_memo(tmp_path, teacher)
    before = teacher.calls
    memo.prepare(1, quiet)
    assert teacher.calls == before == 1


def test_another_seed_finds_the_views_that_both_draw(tmp_path):
    one = make_memo(tmp_path)
    one.prepare(1, quiet)
    two = make_memo(tmp_path, loader=make_loader(seed=2))
    both = np.intersect1d(one.keys(1), two.keys(1))
    assert two.store.folder == one.store.folder
    assert f"{len(both)} of 40 logits are cached or repeat" in two.outlook([1])
    two.prepare(1, quiet)
    sizes = sorted(path.stat().st_size for path in segments(tmp_path))
    row = 4 + two.store.row_bytes
    assert sizes == [row * (40 - len(both)), row * 40]


def test_outlook_counts_repeated_and_cached_logits(tmp_path):
    memo = make_memo(tmp_path)
    different = len(np.unique(np.concatenate([memo.keys(epoch) for epoch in range(1, 31)])))
    assert memo.outlook(range(1, 31)) == (
        f"teacher cache: {1200 - different} of 1200 logits are cached or repeat, "
        f"{different} to compute; stored lossless; a step runs the student alone; "
        f"{memo.store.folder}"
    )
    memo.prepare(2, quiet)
    assert f"{different - 40} to compute" in memo.outlook(range(1, 31))
    assert "0 of 0 logits are cached or repeat, 0 to compute" in memo.outlook(range(1, 1))


def test_the_bits_of_a_row_do_not_depend_on_the_other_keys(tmp_path):
    memo = make_memo(tmp_path, loader=make_loader(64))
    keys = memo.keys(1)
    together = memo.fill(keys, quiet)
    apart = [
        memo.fill(part, quiet) for part in (keys[::-1][:10], keys[::-1][10:11], keys[::-1][11:])
    ]
    assert (np.concatenate(apart) == together[::-1]).all()


def test_the_teacher_runs_in_batches_of_one_shape(tmp_path):
    shapes = []
    teacher = make_teacher()
    forward = teacher.forward
    teacher.forward = lambda image: (shapes.append(tuple(image.shape)), forward(image))[1]
    memo = make_memo(tmp_path, teacher)
    del shapes[:]
    shown = []
    keys = np.arange(200)
    assert memo.fill(keys, shown.append).shape == (200, memo.store.row_bytes)
    assert shapes == [(128, 3, 8, 8)] * 2
    assert shown == [0, 128]


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_the_stored_type_is_the_given_one(tmp_path, dtype):
    memo = make_memo(tmp_path, dtype=dtype)
    first = logits_of_epoch(memo)
    (file,) = segments(tmp_path)
    assert file.stat().st_size == 40 * (4 + 4 * (4 if dtype == "fp32" else 2))
    assert memo.tables["logits"].dtype == torch.float32
    memo.tables["logits"].zero_()
    assert torch.equal(logits_of_epoch(memo), first)
    live = memo.compute(*memo_order(memo))["logits"]
    torch.testing.assert_close(first, live, rtol=1e-2, atol=1e-2)


def memo_order(memo, epoch=1):
    index, numbers = memo.loader.order(epoch)
    return index, numbers[memo.view]


def test_auto_stores_the_type_that_the_teacher_computes(tmp_path):
    memo = make_memo(tmp_path, amp=torch.bfloat16)
    assert memo.rows.fields[0].dtype == memo.tables["logits"].dtype == torch.bfloat16
    assert memo.store.row_bytes == 8


# What the cache depends on.


def test_a_custom_augmentation_is_identified_by_its_identity(tmp_path):
    folders = [
        make_memo(tmp_path, loader=make_loader(weak=Roll(step))).store.folder for step in (1, 1, 2)
    ]
    assert folders[0] == folders[1] != folders[2]
    assert repr(Roll()) != repr(Roll())


def test_the_folder_depends_on_everything_that_decides_the_logits(tmp_path):
    half = make_teacher()
    half.fc.weight.mul_(0.5)
    memos = [
        make_memo(tmp_path),
        make_memo(tmp_path, make_teacher(seed=1)),
        make_memo(tmp_path, half),
        make_memo(tmp_path, loader=make_loader(weak=CropFlip(padding=2))),
        make_memo(tmp_path, loader=make_loader(39)),
        make_memo(tmp_path, dtype="fp16"),
        make_memo(tmp_path, amp=torch.bfloat16, dtype="fp32"),
        make_memo(tmp_path, teacher=make_teacher(), dataset="other"),
    ]
    assert len({memo.store.folder for memo in memos}) == len(memos)
    assert make_memo(tmp_path).store.folder == memos[0].store.folder
    assert make_memo(tmp_path, loader=make_loader(seed=5)).store.folder == memos[0].store.folder


def test_differences_that_the_first_logits_do_not_show(tmp_path):
    """A weight that decides nothing here, an image past the sample, a parameter of the views."""
    tracked = make_teacher()
    tracked.bn.num_batches_tracked += 1
    changed = make_loader(130)
    changed.images.image[-1] = 0
    memos = [
        make_memo(tmp_path, make_teacher(), loader=make_loader(130)),
        make_memo(tmp_path, tracked, loader=make_loader(130)),
        make_memo(tmp_path, make_teacher(), loader=changed),
        make_memo(tmp_path, make_teacher(), loader=make_loader(130, weak=Roll(8))),
        make_memo(tmp_path, make_teacher(), loader=make_loader(130, weak=Roll(16))),
    ]
    assert len({memo.store.folder for memo in memos}) == len(memos)


def test_each_view_has_a_memo(tmp_path):
    loader = make_loader(strong=Roll(), views=("weak", "strong"))
    weak, strong = (make_memo(tmp_path, loader=loader, view=view) for view in ("weak", "strong"))
    assert weak.store.folder != strong.store.folder
    assert strong.store.about["num_keys"] == 40 * 3
    assert strong.store.about["view"] == "strong"
    for memo in (weak, strong):
        live = memo.compute(*memo_order(memo))["logits"]
        torch.testing.assert_close(logits_of_epoch(memo), live, rtol=0, atol=1e-5)


def test_settings_of_several_teachers(tmp_path):
    cfg = config("LOG.PREFIX", tmp_path, "DISTILLER.TEACHER", "['TinyNet', 'TinyNet']")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DISTILLER.TEACHER = ["TinyNet", "timm/a b:c"]
    names = [memo_settings(cfg, number).teacher for number in (0, 1)]
    assert names == ["TinyNet", "timm-a-b-c"]
    assert memo_settings(cfg).folder == tmp_path / "teacher_memo"
    cfg.TEACHER_MEMO.FOLDER = "~/memos"
    assert "~" not in str(memo_settings(cfg).folder)


@pytest.mark.parametrize(
    ("name", "safe"), [("resnet32x4", "resnet32x4"), ("../../x", "..-..-x"), ("ä" * 9, "-")]
)
def test_names_are_reduced_to_safe_characters(name, safe):
    assert safe_name(name) == safe
    assert len(safe_name("x" * 500)) == 64


# Damage, limits, and the teacher.


def test_damaged_logits_are_computed_again(tmp_path):
    good = logits_of_epoch(make_memo(tmp_path))
    (victim,) = segments(tmp_path)
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)

    lines = []
    assert torch.equal(logits_of_epoch(make_memo(tmp_path, lines=lines)), good)
    assert len(lines) == 1
    assert f"{victim} is damaged" in lines[0]
    assert segments(tmp_path) == [victim]


def test_logits_of_another_teacher_are_refused(tmp_path):
    own = make_memo(tmp_path)
    good = logits_of_epoch(own)
    other = make_memo(tmp_path, make_teacher(seed=1))
    assert not torch.equal(logits_of_epoch(other), good)

    for path in segment_files(own.store.folder):
        path.unlink()
    for path in segment_files(other.store.folder):
        path.rename(own.store.folder / path.name)

    lines = []
    assert torch.equal(logits_of_epoch(make_memo(tmp_path, lines=lines)), good)
    assert "belongs to another cache" in lines[0]


def test_a_cache_that_cannot_be_written_gives_the_same_logits(tmp_path):
    good = logits_of_epoch(make_memo(tmp_path / "good"))
    (tmp_path / "file").write_text("")
    for folder, limit in ((tmp_path / "file" / "below", 1e9), (tmp_path / "small", 500)):
        lines = []
        memo = make_memo(folder, lines=lines, max_bytes=limit)
        for epoch in (2, 1):
            cached = logits_of_epoch(memo, epoch)
        assert torch.equal(cached, good)
        assert len(lines) == 1
        assert "nothing more is written" in lines[0]


def test_two_memos_at_once_read_and_write_one_folder(tmp_path):
    one, two = make_memo(tmp_path), make_memo(tmp_path, loader=make_loader(seed=2))
    for epoch in (1, 2, 3):
        for memo in (one, two):
            torch.testing.assert_close(
                logits_of_epoch(memo, epoch),
                memo.compute(*memo_order(memo, epoch))["logits"],
                rtol=0,
                atol=1e-5,
            )
    one.store.refresh()
    assert (one.store.contains() == two.store.contains()).all()


def test_the_teacher_is_not_changed(tmp_path):
    teacher = make_teacher()
    before = fingerprint(teacher)
    for amp in (None, torch.bfloat16):
        make_memo(tmp_path, teacher, amp=amp).prepare(1, quiet)
    assert fingerprint(teacher) == before
    assert not teacher.training
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert next(teacher.parameters()).device == CPU
