"""Files of weights: which one is meant, and how each layout is read and written."""
