"""The data set: from COCO annotations and image files to training batches, and `check-data`.

In comes the folder of a data set, or the paths of its annotation files and image folders. Out go records of images and
instances (`CocoData`), a report on everything that is wrong with them, and batches of tensors for training. Evaluation
reads annotations and results with the same parser.

Read in this order:

    coco_types     types of COCO masks, results and metrics
    layout         find annotation files and image folders
    numbers        parse numbers and ids: 12, 12.0 and "12"
    faults         collect faults of a file and report them together
    coco_json      read a COCO file and parse its entries
    rle            read and write run-length codes of masks
    segmentation   parse and rasterise polygons and run-length codes
    coco           read a split into checked records
    images         read image files as RGB arrays
    statistics     count images, instances, sizes
    fitting        fit images into the canvas, and make them the model's input
    transforms     move images and instances onto the canvas, with augmentation
    object_sizes   measure objects on the canvas; find those that the smallest scale erases
    achievable_ap  compute the highest AP that masks of a stride can reach
    check          check a whole data set, for `check-data` and training
    fix_log        what a corrected copy changed and left
    fix_masks      correct the mask, box and area of one annotation
    fix_entries    correct the entries of one file
    fixes          write a corrected copy of a data set, for `check-data --fix`
    copy_paste     paste instances of one training image onto another
    dataset        make training samples and batches
    sampler        decide which sample comes when
"""
