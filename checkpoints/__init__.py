"""Find, read and write files of weights, in the layouts of this and other projects."""
