"""The contract suite: what every backend must do, on real storage. See `subjects`."""
