"""Data sets that papers on continual learning train on, as they are published: on the hub or in files."""
