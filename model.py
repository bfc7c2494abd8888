"""SRCNN (Dong, Loy, He, Tang, arXiv 1501.00092): the network."""

import os

from torch import Tensor, nn
from torch.nn import functional as F

from checkpoints.layouts import PADDING_MODES
from checkpoints.loading import load_checkpoint
from checkpoints.lookup import shipped_weights


class SRCNN(nn.Module):
    """Three convolutions f1-f2-f3 with ReLU between (section 3.1 of the paper); see `configure`."""

    def __init__(
        self,
        kernel_sizes=(9, 1, 5),
        channels: int = 1,
        widths=(64, 32),
        padding_mode: str = "replicate",
    ):
        super().__init__()
        self.configure(kernel_sizes, channels, widths, padding_mode)
        (f1, f2, f3), (n1, n2) = self.kernel_sizes, self.widths
        # The layers pad nothing: `forward` does, by padding_mode, which may change later
        # Patch extraction and representation (3.1.1): every f1×f1 patch becomes n1 features
        self.features = nn.Sequential(nn.Conv2d(channels, n1, f1), nn.ReLU())
        # Non-linear mapping (3.1.2): they become the n2 features of a high-resolution patch
        self.map = nn.Sequential(nn.Conv2d(n1, n2, f2), nn.ReLU())
        # Reconstruction (3.1.3): the overlapping patches are put together, by learned averaging
        self.reconstruction = nn.Conv2d(n2, channels, f3)

    def forward(self, x: Tensor) -> Tensor:
        """N×C×H×W in [0, 1], already upscaled by bicubic, to the same shape (smaller by
        f1 + f2 + f3 - 3, if padding_mode is "valid")."""
        f1, f2, f3 = self.kernel_sizes
        # To N×n1×H×W, to N×n2×H×W, to N×C×H×W, which is not clamped to [0, 1]: callers do that
        x = self.features(self._pad(x, f1 // 2))
        x = self.map(self._pad(x, f2 // 2))
        return self.reconstruction(self._pad(x, f3 // 2))

    def _pad(self, x: Tensor, size: int) -> Tensor:
        if self.padding_mode == "valid" or size == 0:
            return x
        # F.pad's name for zeros is "constant"
        mode = "replicate" if self.padding_mode == "replicate" else "constant"
        return F.pad(x, (size, size, size, size), mode)

    def configure(self, kernel_sizes, channels: int, widths, padding_mode: str):
        """What the constructor takes.

        Args:
            kernel_sizes: odd sizes (f1, f2, f3); the paper's are 9-1-5, 9-3-5 and 9-5-5.
            channels: 1 for Y, 3 for RGB.
            widths: filters (n1, n2) of the first two layers.
            padding_mode: what each convolution sees beyond the border. "replicate": the edge pixel
                (the authors' test code, and ours); "zeros" (most ports); "valid": nothing
                (training). It belongs to the weights: those made for one lose up to 7 dB with
                another.

        Attributes ``upscale_factor`` (0: unknown) and ``interpolation`` ("matlab" or "torch") say
        for which input the weights were made, and ``metadata`` how they were made;
        `from_pretrained` sets them, and ``ignored``: names in the file that were not run.
        Raises ValueError for what no SRCNN has.
        """
        # Files and the command line give lists; tuples of the same sizes are equal
        kernel_sizes, widths = tuple(kernel_sizes), tuple(widths)
        # An even kernel has no pixel in its middle: the output would be shifted by half of one
        if len(kernel_sizes) != 3 or any(k < 1 or k % 2 == 0 for k in kernel_sizes):
            raise ValueError(
                f"kernel_sizes={kernel_sizes}: give three odd sizes, for example 9 1 5"
            )
        if channels not in (1, 3):
            raise ValueError(f"channels={channels}: 1 (Y) or 3 (RGB)")
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode={padding_mode!r}: one of {', '.join(PADDING_MODES)}")
        self.kernel_sizes, self.widths = kernel_sizes, widths
        self.channels, self.padding_mode = channels, padding_mode
        # Until `from_checkpoint` has told them
        self.upscale_factor, self.interpolation, self.metadata = 0, "matlab", {}
        self.ignored = []

    def macs_per_pixel(self) -> int:
        """Multiply-accumulates for each output pixel; 8,032 for 9-1-5 (5,184 + 2,048 + 800)."""
        # Each weight is used once for each pixel of the output
        layers = self.features[0], self.map[0], self.reconstruction
        return sum(layer.weight.numel() for layer in layers)

    @classmethod
    def from_pretrained(
        cls,
        path_or_scale,
        kernel_sizes=None,
        channels: int = 1,
        interpolation: str = "auto",
        padding_mode: str = "auto",
    ) -> "SRCNN":
        """A trained network in eval mode.

        Args:
            path_or_scale: a file of any kind that `load_checkpoint` takes; or the scale (2, 3 or
                4), for the weights that ship with the project.
            kernel_sizes, channels: which of those that ship, default 9-1-5 on Y; a file says so
                itself.
            interpolation: "matlab" or "torch", for a file that does not say what enlarges its
                input.
            padding_mode: one of `PADDING_MODES`, for a file that does not state it.
        Raises what `load_checkpoint` raises, and ValueError where no such weights ship.
        """
        # A number is a scale; "3" would be a file
        if not isinstance(path_or_scale, (str, os.PathLike)):
            path_or_scale = shipped_weights(path_or_scale, kernel_sizes or (9, 1, 5), channels)
        return cls.from_checkpoint(load_checkpoint(path_or_scale, interpolation, padding_mode))

    @classmethod
    def from_checkpoint(cls, checkpoint: dict) -> "SRCNN":
        """The network, in eval mode, of what `load_checkpoint` or `to_checkpoint` returned."""
        names = "kernel_sizes", "channels", "widths", "padding_mode"
        network = cls(*(checkpoint[name] for name in names))
        network.load_state_dict(checkpoint["state_dict"])
        for name in ("upscale_factor", "interpolation"):
            setattr(network, name, checkpoint[name])
        network.metadata = checkpoint["facts"]
        network.ignored = checkpoint.get("ignored", [])
        return network.eval()

    def state_dict(self, *arguments, **options):
        """torch's; and where it keeps versions, what the weights are for. So a file of nothing else
        (``torch.save(network.state_dict(), path)``) loads with the padding that it needs."""
        state_dict = super().state_dict(*arguments, **options)
        getattr(state_dict, "_metadata", {}).update(self._made_for())
        return state_dict

    def _made_for(self) -> dict:
        return {
            "format": "srcnn-pytorch",
            "padding_mode": self.padding_mode,
            "interpolation": self.interpolation,
            "upscale_factor": self.upscale_factor,
        }

    def to_checkpoint(self, metadata: dict, training: dict | None = None) -> dict:
        """What a file of ours holds, for torch.save: plain types and tensors, so that it loads with
        weights_only=True.

        Args:
            metadata: how the weights were made.
            training: what train.py needs to go on.
        """
        # Contiguous copies in memory of their own: a view would be saved with all of what it is of
        state_dict = {
            name: tensor.detach().cpu().contiguous().clone()
            for name, tensor in self.state_dict().items()
        }
        content = {
            **self._made_for(),
            "kernel_sizes": list(self.kernel_sizes),
            "channels": self.channels,
            "widths": list(self.widths),
            "facts": metadata,  # the files' name of it
            "state_dict": state_dict,
        }
        return content | ({"training": training} if training else {})
