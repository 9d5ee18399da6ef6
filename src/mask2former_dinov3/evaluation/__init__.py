"""Evaluation: COCO mask AP, box AP and boundary AP at the images' own size, equal to pycocotools.

In come a COCO annotation file and either a model with the folder of the images, or a file of COCO results. Out go the
metrics as a dictionary, and as files metrics.json, predictions.json and images.json.

Read in this order:

    result_ids       match results with annotations by the names of images
    coco_files       read annotations and results as they are scored
    truth_notes      write notes on objects annotated twice and on results of other images
    coco_ap          compute COCO AP of results on annotations
    matches          which result finds which object, for all that is counted beside AP
    score_curves     precision, recall and F1 over the score threshold
    operating_point  the choice of a threshold, with its uncertainty
    copy_choice      whether dropping copies of results raises F1
    threshold_choice  the operating point in metrics.json, in a model's config.json and in print
    set_threshold    store the threshold of an evaluation in a model folder
    evaluate         predict a split with a model, and score the results
"""
