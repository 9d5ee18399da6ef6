"""Predict on images that are too large for one pass: cut into tiles, read in parts, merge the results.

An image file or array comes in, with the side of a tile and the overlap from `InferenceSettings`. One `Instances` of
the whole image goes out, in which every object appears once and complete. `Predictor.predict_rows` runs the model.

Read in this order:

    grid           decides how an image is cut, and places overlapping tiles on it
    part_reader    an image that is read in parts
    image_reader   reads parts of image files of any size
    runs           masks as vertical runs of pixels
    merging        joins the instances of all tiles
"""
