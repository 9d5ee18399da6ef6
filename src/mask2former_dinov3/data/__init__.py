"""COCO data sets: find the files, read and check the annotations, transform, and batch.

`layout` finds the splits, `coco` reads a split into records, `check` says what is wrong with it, `dataset` makes
training samples of the records through `images`, `transforms` and `segmentation`, `order` says which sample comes when.
"""
