"""Write the model card for the Hugging Face Hub from the tables in docs/ and the bundled weights.

python -m tools.model_card                   # writes docs/model_card.md
hf upload OWNER/NAME docs/model_card.md README.md
hf upload OWNER/NAME assets/weights .
"""

import argparse
import hashlib
import re
from pathlib import Path

from checkpoints.lookup import WEIGHTS
from system.files import UserError, write_file
from tools import one_line_errors

ROOT = Path(__file__).resolve().parents[1]
CARD = ROOT / "docs" / "model_card.md"
TEXT = """\
---
license: apache-2.0
library_name: pytorch
pipeline_tag: image-to-image
tags:
- super-resolution
- image-upscaling
- srcnn
metrics:
- psnr
- ssim
---

# SRCNN in PyTorch

Weights of SRCNN (Dong, Loy, He, Tang: Image Super-Resolution Using Deep Convolutional Networks,
[arXiv 1501.00092](https://arxiv.org/abs/1501.00092)), trained on the 91 images of T91 with
five images held out to select the checkpoint; `_T291` on T91 and the 200 training images of
BSDS500, with 15 held out. The test sets chose nothing.

## Use

In a clone of the project (or from any folder with the project's folder on `sys.path`):

```python
from model import SRCNN
from inference import upscale

network = SRCNN.from_pretrained("hf://OWNER/NAME/srcnn_9-1-5_x3.pth")
large = upscale("photo.jpg", 3, network)
```

`OWNER/NAME` is the name of this repository; `...pth@REVISION` pins a revision. On the command line:
`python upscale.py photo.jpg --model_path hf://OWNER/NAME/srcnn_9-1-5_x3.pth`.

The input is an image enlarged by MATLAB's bicubic (`imresize`), its luminance (Y, or RGB for
`_rgb`) in [0, 1]. Every layer pads by replicating the edge. The files hold tensors, numbers and
texts alone: `torch.load(path, weights_only=True)` reads them. {layers}

## Results

PSNR in dB / SSIM. Networks on Y: 8-bit luminance, as many pixels as the scale shaved off each side
(the paper's protocol). Networks on RGB: all channels (MMagic's protocol). "Held out": PSNR on
training images that were excluded from training.

{results}

## Files

| file | bytes | SHA-256 |
|---|---|---|
{files}

## Limits

Trained for pictures that were reduced by bicubic, without noise and compression. JPEG and video
gain little, except by the two `_jpeg` networks: they are for pictures of a JPEG quality below 92,
and lose on clean ones. It sharpens and does not invent detail.

## Citation

```bibtex
@article{{dong2016srcnn,
  title   = {{Image Super-Resolution Using Deep Convolutional Networks}},
  author  = {{Dong, Chao and Loy, Chen Change and He, Kaiming and Tang, Xiaoou}},
  journal = {{IEEE Transactions on Pattern Analysis and Machine Intelligence}},
  volume  = {{38}},
  number  = {{2}},
  pages   = {{295--307}},
  year    = {{2016}}
}}
```
"""


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args(argv)
    with one_line_errors():
        write_file(model_card(), CARD)
        print(f"written: {CARD}")


def model_card() -> str:
    """Return the model card as Markdown.

    Raises UserError if docs/weights.md has no table, or no row for one of the bundled weights.
    """
    table = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
    head = re.search(r"^\| weights \|(.*)$", table, re.MULTILINE)
    if not head:
        raise UserError("docs/weights.md has no table of weights")
    # Drop the last column: its links point into the project
    columns = [cell.strip() for cell in head[1].strip("|").split("|")][:-1]
    results = [f"| weights | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    files = []
    for path in sorted(WEIGHTS.glob("*.pth")):
        row = re.search(rf"^\| {re.escape(path.stem)} \|(.*)$", table, re.MULTILINE)
        if not row:
            raise UserError(f"docs/weights.md has no row for {path.stem}; add it first")
        cells = [cell.strip() for cell in row[1].strip("|").split("|")][:-1]
        results.append(f"| {path.stem} | {' | '.join(cells)} |")
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        files.append(f"| {path.name} | {len(content):,} | `{digest}` |")
    names = "The layers are `features.0`, `map.0` and `reconstruction`."
    return TEXT.format(layers=names, results="\n".join(results), files="\n".join(files))


if __name__ == "__main__":
    main()
