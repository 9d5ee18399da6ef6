"""Predict on many image files, for the verb `predict`: one result folder, which a stopped run continues.

Files, folders, glob patterns and addresses come in, with a model and `InferenceSettings`. Overlays, masks, COCO files,
tables and polygons go out, below one output folder and nowhere else. Inputs that cannot be read are reported at the
end.

Read in this order:

    predict_files   the whole run: find, load ahead, predict, write
    addresses       fetches what is named by address
    find_images     turns the user's inputs into image files, each with a unique name
    progress        remembers finished images on disk, so that a stopped run continues
    writers         writes the output files of one image
    polygons        traces masks, and writes GeoJSON and YOLO labels
    label_studio_tasks  makes tasks with pre-annotations of results
    result_files    writes the results of all images: COCO data set, COCO results, tables, tasks
"""
