"""Evaluation: COCO mask AP, box AP and boundary AP at the images' own size, equal to pycocotools.

In come a COCO annotation file and either a model with the folder of the images, or a file of COCO results. Out go the
metrics as a dictionary, and as files metrics.json, predictions.json, images.json and evaluation.json; and comparisons
of several sets of results on the same ground truth.

Read in this order:

    result_ids         match results with annotations by the names of images
    coco_files         read annotations and results as they are scored
    truth_notes        write notes on objects annotated twice and on results of other images
    coco_ap            compute COCO AP of results on annotations
    matches            which result finds which object, for all that is counted beside AP
    stored_evaluation  what an evaluation was made on, as a file
    evaluate           predict a split with a model, and score the results
    paired_bootstrap   intervals of the difference in AP of two sets of results
    image_changes      what changed on each image between two sets of results
    compared_inputs    results, ground truth, recipe and log behind a path
    comparison         all of it: what `compare` says
"""
