"""Read and write image files: names of earlier versions, for scripts and notebooks of users.

The code is in images/.
"""

from images.reading import read_image, read_photo
from images.writing import write_image

__all__ = ["read_image", "read_photo", "write_image"]
