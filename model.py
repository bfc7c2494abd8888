"""SRCNN (Dong, Loy, He, Tang, arXiv 1501.00092): the network."""

import hashlib
import os
import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from checkpoints.layouts import PADDING_MODES
from checkpoints.loading import load_checkpoint
from checkpoints.lookup import shipped_weights
from system.architecture import colours_of, default_widths
from system.convolutions import Convolution, ReLU

# The sides of an image in the order of F.pad: left, right, top, bottom
ALL_SIDES = (True, True, True, True)


class SRCNN(nn.Module):
    """The network of the paper: convolutions with ReLU between them (section 3.1).

    ==================  ========================  ==========================================
    layer               filters                   step of the paper
    ==================  ========================  ==========================================
    ``features``        n1 of size f1×f1          patch extraction and representation (3.1.1)
    ``map``             n2 of size f2×f2, ...     non-linear mapping (3.1.2)
    ``reconstruction``  one a channel, f3×f3      reconstruction (3.1.3)
    ==================  ========================  ==========================================

    Args:
        kernel_sizes: odd sizes (f1, f2, f3), at least two. The paper's are 9-1-5, 9-3-5 and 9-5-5,
            and the deeper 9-1-1-5, 9-3-3-5, ... with several mapping layers (section 4.3.3).
        channels: "y" or 1 for luminance, "ycbcr", and "rgb" or 3.
        widths: filters (n1, n2, ...) of all layers but the last. None: the paper's, 64 and 32 for
            three layers, see `system.architecture.default_widths`.
        padding_mode: the pixels beyond the border of every layer's input. "replicate": the edge
            pixel (the authors' test code, our weights). "zeros": most ports. "valid": none, so the
            output is smaller (training). With a mode not their own, weights lose up to 7 dB.

    Attributes: ``channels`` is the number of channels, ``colours`` is "y", "ycbcr" or "rgb".
    ``upscale_factor`` (0: unknown) and ``interpolation`` ("matlab" or "torch") describe the input
    of the weights. ``metadata`` describes their training. ``ignored`` lists unused names in their
    file. `from_pretrained` sets all of them. `predict` computes in ``inference_dtype``, float32;
    set it to torch.bfloat16 for more speed.
    Raises ValueError for arguments that do not make a network.
    """

    def __init__(
        self,
        kernel_sizes=(9, 1, 5),
        channels: int | str = 1,
        widths=None,
        padding_mode: str = "replicate",
    ):
        super().__init__()
        # Files and the command line give lists; tuples of the same sizes are equal
        kernel_sizes = tuple(kernel_sizes)
        widths = tuple(widths or default_widths(kernel_sizes))
        # An even kernel has no middle pixel: the output would be shifted by half a pixel
        if len(kernel_sizes) < 2 or any(k < 1 or k % 2 == 0 for k in kernel_sizes):
            raise ValueError(
                f"kernel_sizes={kernel_sizes}: give two or more odd sizes, for example 9 1 5"
            )
        if len(widths) != len(kernel_sizes) - 1 or min(widths) < 1:
            raise ValueError(
                f"widths={widths}: give {len(kernel_sizes) - 1} positive numbers, one for each "
                "layer but the last"
            )
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode={padding_mode!r}: one of {', '.join(PADDING_MODES)}")
        self.kernel_sizes, self.widths, self.padding_mode = kernel_sizes, widths, padding_mode
        self.colours = colours_of(channels)
        self.channels = channels = 1 if self.colours == "y" else 3
        # `from_checkpoint` sets these
        self.upscale_factor, self.interpolation, self.metadata = 0, "matlab", {}
        self.ignored = []
        self.inference_dtype = torch.float32

        # A layer's inputs, outputs and kernel size. None of them pads: `forward` does
        first, *middle, last = zip((channels, *widths), (*widths, channels), kernel_sizes)
        self.features = nn.Sequential(Convolution(*first), ReLU())
        mapping = [module for layer in middle for module in (Convolution(*layer), ReLU())]
        self.map = nn.Sequential(*mapping)
        self.reconstruction = Convolution(*last)

    def forward(self, x: Tensor, border=ALL_SIDES) -> Tensor:
        """Return the restored image, not clamped to [0, 1].

        Args:
            x: N×C×H×W in [0, 1], already enlarged by bicubic. It may be a part of an image.
            border: for each side of x (left, right, top, bottom): is it the image's border? There
                every layer's input is padded. On the other sides, and on all sides if padding_mode
                is "valid", the output has `reach` pixels less.
        """
        steps = [*self.features, *self.map]  # convolution, ReLU, convolution, ReLU, ...
        for convolution, relu in zip(steps[::2], steps[1::2]):
            x = relu(convolution(self.pad(x, convolution, border)))
        return self.reconstruction(self.pad(x, self.reconstruction, border))

    def pad(self, x: Tensor, layer: nn.Conv2d, border=ALL_SIDES) -> Tensor:
        """Return a layer's input with the necessary pixels beyond the border."""
        size = layer.kernel_size[0] // 2
        if self.padding_mode == "valid" or size == 0 or not any(border):
            return x
        # F.pad's name for zeros is "constant"
        mode = "replicate" if self.padding_mode == "replicate" else "constant"
        return F.pad(x, [size if side else 0 for side in border], mode)

    @property
    def layers(self) -> list[nn.Conv2d]:
        """Return the convolutions, from the first to the last."""
        return [*self.features, *self.map][::2] + [self.reconstruction]

    @property
    def reach(self) -> int:
        """Return the radius, in pixels, of the input area of an output pixel; 6 for 9-1-5."""
        return sum(size // 2 for size in self.kernel_sizes)

    def macs_per_pixel(self) -> int:
        """Return the multiplications an output pixel: 8,032 for 9-1-5 (5,184 + 2,048 + 800)."""
        # Each weight is used once a pixel
        return sum(layer.weight.numel() for layer in self.layers)

    @classmethod
    def from_pretrained(
        cls,
        path_or_scale,
        kernel_sizes=None,
        channels: int | str = 1,
        interpolation: str = "auto",
        padding_mode: str = "auto",
    ) -> "SRCNN":
        """Return a trained network in eval mode.

        Args:
            path_or_scale: any file for `load_checkpoint`; or a scale (2, 3 or 4) for the bundled
                weights.
            kernel_sizes, channels: the network, for bundled weights; default 9-1-5 on Y.
            interpolation: of the input, "matlab" or "torch", if the file does not state it.
            padding_mode: one of `PADDING_MODES`, if the file does not state it.
        Raises the errors of `load_checkpoint`, and ValueError if no such weights are bundled.
        """
        # A number is a scale, but "3" is a file
        if not isinstance(path_or_scale, (str, os.PathLike)):
            path_or_scale = shipped_weights(path_or_scale, kernel_sizes or (9, 1, 5), channels)
        return cls.from_checkpoint(load_checkpoint(path_or_scale, interpolation, padding_mode))

    @classmethod
    def from_checkpoint(cls, checkpoint: dict) -> "SRCNN":
        """Return the network of a dict from `load_checkpoint` or `to_checkpoint`, in eval mode."""
        names = "kernel_sizes", "colours", "widths", "padding_mode"
        network = cls(*(checkpoint[name] for name in names))
        network.load_state_dict(checkpoint["state_dict"])
        for name in ("upscale_factor", "interpolation"):
            setattr(network, name, checkpoint[name])
        network.metadata = checkpoint["facts"]
        network.ignored = checkpoint.get("ignored", [])
        return network.eval()

    def state_dict(self, *arguments, **options):
        """Return the weights like nn.Module.state_dict, with padding, interpolation and scale in
        _metadata. So a file from ``torch.save(network.state_dict(), path)`` loads correctly."""
        state_dict = super().state_dict(*arguments, **options)
        getattr(state_dict, "_metadata", {}).update(self._made_for())
        return state_dict

    def __prepare_scriptable__(self) -> nn.Module:
        """Return the module that torch.jit.script(network) compiles: a trace of `forward`.

        No step depends on the values or the size of x, so the trace is right for all images. Its
        attributes state padding, interpolation and scale, as `load_checkpoint` reads them.
        """
        side = 2 * self.reach + 8
        x = self.layers[0].weight.new_zeros(1, self.channels, side, side)
        with warnings.catch_warnings():
            # Sizes are compared in Python; torch.jit is deprecated, as its caller knows
            warnings.simplefilter("ignore")
            scripted = nn.Sequential(torch.jit.trace(self, x, check_trace=False))
        for name, value in self._made_for().items():
            setattr(scripted, name, value)
        return scripted

    def digest(self) -> str:
        """Return a SHA-256 over the weights."""
        total = hashlib.sha256()
        for name, tensor in self.state_dict().items():
            total.update(f"{name} {tuple(tensor.shape)}\n".encode())
            total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return total.hexdigest()

    def _made_for(self) -> dict:
        return {
            "format": "srcnn-pytorch",
            "padding_mode": self.padding_mode,
            "interpolation": self.interpolation,
            "upscale_factor": self.upscale_factor,
            "colours": self.colours,
        }

    def to_checkpoint(self, metadata: dict, training: dict | None = None) -> dict:
        """Return the content of a checkpoint, for torch.save: plain types and tensors on the CPU,
        so that it loads with weights_only=True.

        Args:
            metadata: how the weights were made.
            training: the state for train.py to resume.
        """
        # Contiguous copies: a view would be saved with its whole base tensor
        state_dict = {
            name: tensor.detach().cpu().contiguous().clone()
            for name, tensor in self.state_dict().items()
        }
        content = {
            **self._made_for(),
            "kernel_sizes": list(self.kernel_sizes),
            "channels": self.channels,
            "widths": list(self.widths),
            "facts": metadata,  # the key in files
            "state_dict": state_dict,
        }
        return content | ({"training": training} if training else {})
