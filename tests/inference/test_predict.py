"""model.predict against the plain network: tiles, borders, types, memory."""

import sys

import pytest
import torch
from launch import finished
from torch.nn import functional as F

from checkpoints import layouts
from evaluation.protocol import test_pair as make_pair
from images.reading import read_image
from imgproc import psnr, rgb2y
from inference import tiling
from inference.tiling import predict
from model import SRCNN
from system.devices import quick_bf16

TILE = 10  # pixels on a side, for tests at the edges of tiles
SIZES = [
    (1, 1),
    (1, 47),
    (47, 1),
    (2, 3),
    (TILE - 1, TILE),
    (TILE, TILE),
    (TILE + 1, 2 * TILE + 1),
    (33, 58),
]


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(tiling, "TILE_BYTES", 64 * 4 * TILE**2)


def random_network(kernel_sizes=(9, 1, 5), channels=1, padding_mode="replicate", widths=None):
    torch.manual_seed(0)
    return SRCNN(kernel_sizes, channels, widths, padding_mode)


def compare(network, x):
    """Return the largest differences of predict from the plain network, in float32 and bfloat16."""
    with torch.no_grad():
        expected = network(x)
    exact, fast = predict(network, x), predict(network, x, torch.bfloat16)
    assert (
        exact.shape == fast.shape == expected.shape and exact.dtype == fast.dtype == torch.float32
    )
    return (exact - expected).abs().max().item(), (fast - expected).abs().max().item()


@pytest.mark.parametrize("padding_mode", layouts.PADDING_MODES)
@pytest.mark.parametrize("kernel_sizes", [(9, 1, 5), (9, 3, 5), (9, 5, 5)])
def test_equals_the_plain_network(small_tiles, kernel_sizes, padding_mode):
    for channels in (1, 3):
        network = random_network(kernel_sizes, channels, padding_mode)
        border = sum(kernel_sizes) - 3 if padding_mode == "valid" else 0
        for height, width in SIZES:
            for count in (1, 3):
                x = torch.rand(count, channels, height + border, width + border)
                exact, fast = compare(network, x)
                assert exact < 1e-6 and fast < 5e-3, (height, width, count, exact, fast)


@pytest.mark.parametrize("padding_mode", layouts.PADDING_MODES)
def test_equals_the_plain_network_in_tiles_of_their_own_size(padding_mode):
    for size in [(1, 301, 299), (5, 60, 50), (1, 20, 2000)]:
        x = torch.rand(size).unsqueeze(1)
        exact, fast = compare(random_network(padding_mode=padding_mode), x)
        assert exact < 1e-6 and fast < 5e-3, (size, exact, fast)


def test_other_architectures(small_tiles):
    for kernel_sizes, widths in [
        ((1, 1, 1), (8, 4)),
        ((3, 7, 9), (5, 3)),
        ((11, 1, 7), (128, 64)),
        ((9, 5), None),
        ((9, 1, 1, 5), None),
        ((9, 3, 3, 5), (20, 18, 17)),
        ((9, 5, 5, 1, 3), None),
    ]:
        for padding_mode in layouts.PADDING_MODES:
            for channels in (1, 3):
                network = random_network(kernel_sizes, channels, padding_mode, widths)
                exact, _ = compare(network, torch.rand(2, channels, 41, 33))
                assert exact < 1e-6, (kernel_sizes, padding_mode, exact)


@pytest.mark.parametrize("padding_mode", layouts.PADDING_MODES)
def test_the_plain_network_is_plain_convolutions(padding_mode):
    """Compute in float64 by torch's modules alone; with and without gradients."""
    for kernel_sizes in [(9, 1, 5), (9, 5, 5), (9, 5), (5, 1, 3, 3)]:
        network = random_network(kernel_sizes, 3, padding_mode)
        x = torch.rand(2, 3, 26, 24)
        y, mode = x.double(), {"zeros": "constant"}.get(padding_mode, padding_mode)
        for layer in network.layers:
            k = layer.kernel_size[0] // 2
            y = y if padding_mode == "valid" else F.pad(y, (k, k, k, k), mode)
            y = F.conv2d(y, layer.weight.double(), layer.bias.double())
            y = y if layer is network.reconstruction else y.relu()
        trained = network(x)
        assert trained.requires_grad
        with torch.no_grad():
            for found in (trained, network(x)):
                torch.testing.assert_close(found.double(), y, atol=1e-6, rtol=0)


def test_hooks_see_every_layer():
    """Collect feature maps by hooks, as users do."""
    network, seen = random_network((9, 1, 1, 5)), []
    for module in (*network.features, *network.map, network.reconstruction):
        module.register_forward_hook(lambda module, x, y: seen.append(y.shape[1]))
    predict(network, torch.rand(1, 1, 20, 20))
    assert seen == [64, 64, 32, 32, 16, 16, 1]


def test_leaves_network_and_input_as_they_are():
    network, x = random_network(), torch.rand(1, 1, 30, 40)
    state, kept = {k: v.clone() for k, v in network.state_dict().items()}, x.clone()
    threads = torch.get_num_threads()
    predict(network.train(), x, torch.bfloat16)
    assert network.training and all(
        p.requires_grad and p.grad is None for p in network.parameters()
    )
    assert all(
        torch.equal(v, state[k]) and v.dtype == state[k].dtype
        for k, v in network.state_dict().items()
    )
    assert torch.equal(x, kept) and torch.get_num_threads() == threads
    assert network(x).requires_grad


def test_the_result_is_an_ordinary_tensor():
    network, x = random_network(), torch.rand(1, 1, 30, 40)
    y = predict(network, x.requires_grad_())
    assert not y.requires_grad and not y.is_inference()
    y.clamp_(0, 1).mul_(255)  # as for a picture in a notebook
    assert predict(network, x.double()).dtype == torch.float64
    assert predict(network, x.expand(2, 1, 30, 40)).shape == (2, 1, 30, 40)
    strided = torch.rand(1, 40, 30, 1).permute(0, 3, 2, 1)
    assert compare(network, strided)[0] < 1e-6


def test_an_empty_batch_and_wrong_shapes():
    network = random_network()
    assert predict(network, torch.rand(0, 1, 5, 6)).shape == (0, 1, 5, 6)
    for shape in [(5, 6), (1, 5, 6), (1, 3, 5, 6), (1, 1, 0, 6)]:
        with pytest.raises(ValueError, match="lr of shape"):
            predict(network, torch.rand(shape))
    with pytest.raises(ValueError, match="lr of shape"):
        predict(random_network(padding_mode="valid"), torch.rand(1, 1, 12, 40))


def test_a_networks_own_type_is_the_default():
    network, x = random_network(), torch.rand(1, 1, 30, 40)
    exact, fast = predict(network, x), predict(network, x, torch.bfloat16)
    network.inference_dtype = torch.bfloat16
    assert torch.equal(predict(network, x), fast) and not torch.equal(fast, exact)
    assert torch.equal(predict(network, x, torch.float32), exact)
    with torch.no_grad():
        network.layers[1].weight.mul_(2)
    assert not torch.equal(predict(network, x), fast), "the rounded weights are the present ones"


@pytest.mark.parametrize(
    "scale, kernel_sizes, sets",
    [
        (3, (9, 1, 5), ("Set5", "Set14")),
        # Rounded to the nearest, their weights would lose 0.015 and 0.013
        (2, (9, 1, 5), ("Set5",)),
        (3, (9, 5, 5), ("Set5",)),
    ],
)
def test_bfloat16_costs_less_than_a_hundredth_of_a_decibel(shared, scale, kernel_sizes, sets):
    network = SRCNN.from_pretrained(scale, kernel_sizes)
    # Where bfloat16 is emulated, ten times as slow, of each image a corner; in smaller ones Set14
    # loses 0.011
    side = None if quick_bf16(torch.device("cpu")) else 256
    for name in sets:
        scores, inner = [], slice(scale, -scale)
        for path in sorted((shared / "data" / name).iterdir()):
            image = read_image(path)[:side, :side]
            y = torch.from_numpy(image if image.ndim == 2 else rgb2y(image[..., :3]))[None]
            lr, hr = make_pair(y, scale)
            eight_bits = [
                (predict(network, lr, dtype)[0, 0] * 255).round().clamp(0, 255).byte().numpy()
                for dtype in (torch.float32, torch.bfloat16)
            ]
            scores.append(
                [psnr(sr[inner, inner], hr[0, inner, inner].numpy()) for sr in eight_bits]
            )
        exact, fast = torch.tensor(scores).mean(0)
        assert abs(exact - fast) < 0.01, (name, exact, fast)


MEMORY = """
import re, torch
from pathlib import Path
from inference import predict
from model import SRCNN
def peak():  # not ru_maxrss, which begins at that of the process that started this one
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
network = SRCNN()
predict(network, torch.rand(1, 1, 300, 300), torch.bfloat16)
x = torch.rand(1, 1, 1000, 1200)
before = peak()
predict(network, x, torch.bfloat16)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, whose /proc it reads")
def test_memory_does_not_grow_with_the_image(tmp_path):
    (tmp_path / "memory.py").write_text(MEMORY)
    process = finished(tmp_path / "memory.py", cwd=tmp_path)
    assert int(process.stdout) < 5 + 60, (
        "MiB, of which the result is 5; layer 1's output would be 146"
    )


def test_self_ensemble_is_the_mean_over_flips_and_rotations(small_tiles):
    for padding_mode, border in [("replicate", 0), ("zeros", 0), ("valid", 12)]:
        network = random_network(padding_mode=padding_mode)
        x = torch.rand(2, 1, 21 + border, 34 + border)
        with torch.no_grad():
            results = [
                torch.rot90(network(torch.rot90(y, turns, (2, 3))), -turns, (2, 3))
                for y in (x, x.flip(3))
                for turns in range(4)
            ]
        expected = sum(results[:4]) / 8 + sum(results[4:]).flip(3) / 8
        y = predict(network, x, self_ensemble=True)
        torch.testing.assert_close(y, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 18.00 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_tile_that_does_not_fit_is_halved_and_so_are_the_rest(error):
    tiles, done, limit = tiling._tiles((2, 1, 64, 80), 2000), torch.zeros(2, 64, 80), 300

    def restore(tile):
        top, bottom, left, right = tile.box
        part = done[tile.images, top:bottom, left:right]
        if part[0].numel() > limit:
            raise error
        part += 1

    tiling._one_by_one(restore, tiles)
    assert (done == 1).all()
    limit = 0
    with pytest.raises(RuntimeError, match="(?i)memory|ALLOC"):
        tiling._one_by_one(restore, tiles)


def test_a_tile_that_fails_otherwise_is_not_tried_again():
    tried = []

    def restore(tile):
        tried.append(tile)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        tiling._one_by_one(restore, tiling._tiles((1, 1, 64, 80), 2000))
    assert len(tried) == 1


def test_a_gpus_tile_counts_what_the_allocator_keeps_and_never_gets_tiny(monkeypatch):
    free, reserved, allocated = 0, 0, 0
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 0))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: allocated)
    device = torch.device("cuda")
    assert tiling._pixels_on_gpu(SRCNN(), device) == 2**18
    reserved, allocated = 2**33, 2**32
    pixels = tiling._pixels_on_gpu(SRCNN(), device)
    reserved, allocated, free = 0, 0, 2**32
    assert 2**18 < pixels == tiling._pixels_on_gpu(SRCNN(), device)


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
@pytest.mark.parametrize("free", [2**32, 2**40])
def test_a_gpus_tile_fits_its_memory_and_31_bits(monkeypatch, kind, free):
    """Keep a layer's output for a tile below 31 bits, the limit of cuDNN and of F.pad."""
    monkeypatch.setattr(tiling, "free_memory", lambda device: free)
    network = SRCNN((9, 5, 5))
    pixels = tiling._pixels_on_gpu(network, torch.device(kind))
    for shape in ((1, 1, 8192, 8192), (1, 1, 60_000, 40_000), (1, 1, 2000, 900_000)):
        for tile in tiling._tiles(shape, pixels)[:9]:
            top, bottom, left, right = tile.box
            # The tile, and the network's reach around it
            most = (bottom - top + 2 * network.reach) * (right - left + 2 * network.reach)
            assert 64 * most < 2**31 and 64 * most * 4 < free


@pytest.mark.parametrize("kernel_sizes", [(9, 1, 5), (9, 5, 5)])
@pytest.mark.parametrize("training", [True, False])
def test_an_image_without_a_batch(kernel_sizes, training):
    network, x = SRCNN(kernel_sizes), torch.rand(1, 30, 40)
    with torch.set_grad_enabled(training):
        torch.testing.assert_close(network(x), network(x[None])[0], atol=1e-6, rtol=0)
