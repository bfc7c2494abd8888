"""Image files: read, write, find and compare them."""
