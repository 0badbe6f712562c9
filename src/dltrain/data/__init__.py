"""Data sets as tensors, their batches and augmentations.

An option of the group `data` is a file in datasets/ with a function of the same name: given a split ("train", "val" or
"test") and its config keys, it returns `Examples`, or None for a split that the data set does not have.
"""
