"""Crops and test pairs."""

import pickle

import pytest
import torch
from launch import make_tiny
from torch.utils.data import DataLoader

import dataset
import imgproc
from dataset import CropPlan, DeviceCrops, StreamedCrops, split_holdout
from evaluation import protocol
from images import reading
from images.prepared import load_prepared, prepared_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Prepare a set of six images 64×60."""
    return make_tiny(tmp_path_factory.mktemp("tiny") / "data") / "prepared/tiny-y"


def make_crops(kind, folder, **options):
    """Return the set on the device with lr kept ("device") or made per batch ("lean"), or streamed."""
    images = load_prepared(folder).images
    if kind == "stream":
        return StreamedCrops(folder, range(len(images)), CropPlan(**options))
    return DeviceCrops(images, CropPlan(**options), keep_lr=kind == "device")


def prepared(path, images):
    path.mkdir()
    torch.save(
        {"names": [str(i) for i in range(len(images))], "images": images},
        path / "00000-of-00001.pth",
    )
    return path


@pytest.mark.parametrize("stride", [1, 14])
@pytest.mark.parametrize("channels, scale, quantize", [(1, 3, False), (1, 2, False), (3, 4, True)])
def test_lr_per_batch_and_streamed_are_the_same_as_kept(
    tmp_path, channels, scale, quantize, stride
):
    """Images of several sizes, one of them too small; crops touch all their borders."""
    torch.manual_seed(0)
    sizes = [(40, 95), (20, 20), (61, 37), (35, 35), (130, 41)]
    images = [torch.randint(0, 256, (channels, *size), dtype=torch.uint8) for size in sizes]
    kept = [4, 0, 1, 3]
    plan = CropPlan(scale, 200, 24, stride, quantize, seed=5)
    device = DeviceCrops([images[i] for i in kept], plan)
    lean = DeviceCrops([images[i] for i in kept], plan, keep_lr=False)
    stream = StreamedCrops(prepared(tmp_path / "set", images), kept, plan)
    assert device.count == lean.count == stream.count and lean.lr is None
    for step in (0, 7):
        for other in (lean, stream):
            for a, b in zip(device[step], other[step]):
                assert a.shape == b.shape == (200, channels, 24, 24)
                assert a.dtype == b.dtype == torch.float32
                torch.testing.assert_close(a, b, rtol=0, atol=1.5e-6)
            assert torch.equal(device[7][1], other[7][1])


@pytest.mark.parametrize("kind", ["device", "lean", "stream"])
def test_crops_come_in_all_8_ways(folder, kind):
    """Each crop is a part of an image, flipped and turned as its transform says, and lr is hr's own."""
    images = load_prepared(folder).images
    options = dict(upscale_factor=2, batch_size=64, crop_size=24, seed=1)
    crops = make_crops(kind, folder, **options)
    lr, hr = crops[3]
    seen = set()
    for i, (image, top, left, transform) in enumerate(zip(*(v.tolist() for v in crops.draw(3)))):
        full = images[image].float() / 255
        low, _ = protocol.test_pair(images[image], 2)
        for whole, crop in ((full, hr[i]), (low[0], lr[i])):
            part = whole[:, top : top + 24, left : left + 24]
            part = part.flip(1) if transform & 1 else part
            part = part.flip(2) if transform & 2 else part
            part = part.transpose(1, 2) if transform & 4 else part
            torch.testing.assert_close(crop, part, rtol=0, atol=1e-6)
        seen.add(transform)
    assert seen == set(range(8))


def test_positions_are_uniform():
    """Every position of every image large enough, and no other, is drawn, equally often."""
    images = [
        torch.zeros(1, 26, 27, dtype=torch.uint8),
        torch.zeros(1, 18, 60, dtype=torch.uint8),
        torch.zeros(1, 24, 25, dtype=torch.uint8),
    ]
    crops = DeviceCrops(images, CropPlan(2, 40_000, 24))
    assert crops.count == 3 * 3 + 1  # 26×26 (cropped to multiples of 2), and 24×24
    image, top, left, transform = crops.draw(0)
    counts = torch.zeros(2, 3, 3).index_put_((image, top, left), torch.ones(()), accumulate=True)
    assert (counts[0] > 3600).all() and (counts[0] < 4400).all() and counts[1].count_nonzero() == 1
    assert (transform.bincount(minlength=8) > 4500).all()


def test_batches_follow_from_seed_and_step(folder):
    images = load_prepared(folder).images
    a, b, other = (DeviceCrops(images, CropPlan(3, 8, 24, seed=seed)) for seed in (0, 0, 1))
    b[0], b[1]
    assert torch.equal(a[5][0], b[5][0]) and torch.equal(a[5][0], a[5][0])
    assert not torch.equal(a[5][0], a[6][0]) and not torch.equal(a[5][0], other[5][0])


@pytest.mark.parametrize("stride", [1, 14])
@pytest.mark.parametrize("kind", ["device", "lean", "stream"])
def test_processes_share_the_batch(folder, kind, stride):
    """Together, the processes' parts are the batch of one process."""

    def crops(rank, world):
        options = dict(upscale_factor=3, batch_size=12, crop_size=33, stride=stride)
        return make_crops(kind, folder, **options, rank=rank, world=world)

    whole = crops(0, 1)[2][1]
    parts = [crops(rank, 3)[2][1] for rank in range(3)]
    assert [len(part) for part in parts] == [4, 4, 4]
    assert torch.equal(torch.stack(parts, 1).flatten(0, 1), whole)


def test_paper_sub_images():
    """All sub-images of the grid once per pass, upright, in one fixed order; as many as the formula says."""
    torch.manual_seed(0)
    sizes = [(61, 49), (33, 33), (34, 80), (30, 99)]
    images = [torch.randint(0, 256, (1, *size), dtype=torch.uint8) for size in sizes]
    expected = []
    for image in images:
        image = imgproc.modcrop(image, 3)
        for y in range(0, image.shape[1] - 32, 14):
            expected += [
                image[:, y : y + 33, x : x + 33] for x in range(0, image.shape[2] - 32, 14)
            ]
    crops = DeviceCrops(images, CropPlan(3, 4, 33, stride=14))
    assert crops.count == len(expected) == 2 * 2 + 1 + 1 * 4
    seen = [crop for step in range(9) for crop in (crops[step][1] * 255).byte()]
    assert {bytes(c.numpy()) for c in seen} == {bytes(e.numpy()) for e in expected} and len(
        seen
    ) == 4 * len(expected)
    assert torch.equal(crops[0][1], crops[9][1]) and torch.equal(crops[1][0], crops[10][0])
    order = [bytes(c.numpy()) for c in seen[:9]]
    assert len(set(order)) == 9 and order != [bytes(e.numpy()) for e in expected]


def test_t91_has_21884_sub_images(shared):
    sizes = [reading.image_size(path) for path in (shared / "data/T91").glob("*.bmp")]
    assert dataset.crop_grid(sizes, 3, 33, 14).prod(1).sum() == 21_884


def test_shrunk_copies(folder):
    images = load_prepared(folder).images[:1]
    crops = DeviceCrops(
        images, CropPlan(2, 64, 24), shrink=(0.75, 0.3)
    )  # 0.3 leaves less than a crop
    assert crops.sizes.tolist() == [[64, 60], [48, 44]]  # 48×45 cropped to multiples of 2
    small = imgproc.imresize(images[0].float(), 0.75).round().clamp(0, 255)[:, :48, :44]
    assert torch.equal(crops.hr[0, 64 * 60 :].view(48, 44).float(), small[0])


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_worker_processes(folder, context):
    """Batches that worker processes make are those of this process, however they were started; what is sent to them
    holds no pixels."""
    stream = StreamedCrops(folder, [0, 2, 3], CropPlan(3, 8, 24))
    assert len(pickle.dumps(stream)) < 1000
    loader = DataLoader(
        stream, batch_size=None, sampler=range(4, 7), num_workers=1, multiprocessing_context=context
    )
    for step, batch in zip(range(4, 7), loader, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, stream[step]))


def test_sets_that_cannot_be_used(folder, tmp_path):
    images = load_prepared(folder).images
    with pytest.raises(ValueError, match="crop_size=61: no training image is that large"):
        DeviceCrops(images, CropPlan(3, 4, 61))
    with pytest.raises(ValueError, match="crop_size=61: no training image is that large"):
        StreamedCrops(folder, range(6), CropPlan(3, 4, 61))
    with pytest.raises(FileNotFoundError, match="not prepared; run prepare_dataset.py"):
        load_prepared(tmp_path)
    prepared(tmp_path / "set", images)
    (tmp_path / "set/00000-of-00001.pth").rename(tmp_path / "set/00000-of-00002.pth")
    with pytest.raises(FileNotFoundError, match="not prepared"):
        load_prepared(tmp_path / "set")
    for content in (b"", b"nonsense", (folder / "00000-of-00001.pth").read_bytes()[:-2000]):
        (tmp_path / "set/00000-of-00002.pth").write_bytes(content)
        (tmp_path / "set/00001-of-00002.pth").write_bytes(content)
        for mmap in (False, True):
            with pytest.raises(
                ValueError, match="00000-of-00002.pth: damaged .*; delete it and run"
            ):
                load_prepared(tmp_path / "set", mmap)


def test_split_holdout():
    assert split_holdout(5, 0) == ([0, 1, 2, 3, 4], [])
    for count in range(2, 40):
        for holdout in range(count):
            kept, held = split_holdout(count, holdout)
            assert sorted(kept + held) == list(range(count)) and len(held) == holdout
    for holdout in (-1, 5, 6):
        with pytest.raises(ValueError, match="the training set has 5 images"):
            split_holdout(5, holdout)


def test_prepared_folder_names(tmp_path):
    names = [
        prepared_folder("data", name, channels, part).as_posix()
        for name, channels, part in (
            ("T91", 1, "train"),
            ("Set5", 3, "test"),
            ("sample", 1, "test"),
            (str(tmp_path / "photos"), 3, "train"),
        )
    ]
    assert names == [
        f"data/prepared/{name}" for name in ("T91-y", "Set5-rgb", "sample-test-y", "photos-rgb")
    ]
