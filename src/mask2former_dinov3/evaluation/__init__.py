"""Evaluation: COCO mask AP, box AP and boundary AP at the images' own size, equal to pycocotools.

In come a COCO annotation file and either a model with the folder of the images, or a file of COCO results. Out go the
metrics as a dictionary, and as files metrics.json and predictions.json.

Read in this order:

    coco_files  read annotations and results as they are scored
    coco_ap     compute COCO AP of results on annotations
    evaluate    predict a split with a model, and score the results
"""
