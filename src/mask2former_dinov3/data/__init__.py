"""The data set: from COCO annotations and image files to training batches, and `check-data`.

In comes the folder of a data set, or the paths of its annotation files and image folders. Out go records of images and
instances (`CocoData`), a report on everything that is wrong with them, and batches of tensors for training. Evaluation
reads annotations and results with the same parser.

Read in this order:

    coco_types     types of COCO masks, results and metrics
    numbers        parse numbers and ids: 12, 12.0 and "12"
    faults         collect faults of a file and report them together
    coco_json      read a COCO file and parse its entries
    rle            read and write run-length codes of masks
    segmentation   parse and rasterise polygons and run-length codes
    images         read image files as RGB arrays
    formats        read YOLO, label maps, labelme and other formats as COCO content
    layout         find annotation files and image folders
    coco           read a split into checked records
    statistics     count images, instances, sizes
    fitting        fit images into the canvas, and make them the model's input
    transforms     move images and instances onto the canvas, with augmentation
    achievable_ap  compute the highest AP that masks of a stride can reach
    check          check a whole data set, for `check-data` and training
    copy_paste     paste instances of one training image onto another
    dataset        make training samples and batches
    sampler        decide which sample comes when
"""
