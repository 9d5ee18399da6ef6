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
    score_curves       precision, recall and F1 over the score threshold
    operating_point    the choice of a threshold, with its uncertainty
    copy_choice        whether dropping copies of results raises F1
    calibration        scores against the precision they have
    calibration_fit    the map of scores that says how often results are right
    threshold_choice   the operating point in metrics.json, in a model's config.json and in print
    average_precision  AP from matches, also of weighted images
    bootstrap          intervals of AP, by resampling images
    error_kinds        errors by kind, and the AP that each costs
    confusion          which class is found as which, at a threshold
    breakdown          AP over size of objects, crowding and size of images
    doubtful_labels    labels that the results contradict, the most doubtful first
    image_ranking      images by what is wrong on them
    stored_evaluation  what an evaluation was made on, as a file
    scored_model       metrics and model of an evaluation folder
    run_record         log and options of a training run
    report_numbers     all of these in one structure, for report.json
    verdict            what the numbers say, in five sentences
    doubt_files        the labels in doubt as COCO and CSV
    set_threshold      store the threshold of an evaluation in a model folder
    evaluate           predict a split with a model, and score the results
    trainer_metrics    COCO AP in transformers' Trainer
    paired_bootstrap   intervals of the difference in AP of two sets of results
    image_changes      what changed on each image between two sets of results
    compared_inputs    results, ground truth, recipe and log behind a path
    comparison         all of it: what `compare` says
    flip_agreement     what a model finds in an image and in its mirrored copy
    label_next         which unlabelled images to label next
"""
