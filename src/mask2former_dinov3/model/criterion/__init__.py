"""The training criterion: match queries with instances, then compute class, mask, dice and seed losses.

In come the predictions of all layers, and masks and class labels of each image.
Out comes a dict of weighted losses; no mask is computed in full for it.

Read in this order:

    loss             the criterion, and its divisors
    matcher          Hungarian matching of queries and instances
    mask_places      where masks are compared: random points or all pixels
    point_sampling   values of masks at points
    seed_loss        loss of the query seeds' score
"""
