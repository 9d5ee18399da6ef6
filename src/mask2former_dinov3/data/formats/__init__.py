"""Other formats than COCO's: each reader turns a source into what a COCO file holds, without writing a file.

In comes the folder of a data set in one of the formats. Out goes a mapping with images, annotations and categories,
which the parser of COCO files reads on, and the place of every annotation in the source, for messages.

Read in this order:

    source_content  number entries, collect faults by cause
    folders         list splits, images and files of a folder
    mask_codes      turn label maps, bitmaps and shapes into segmentations
    yolo_labels     read YOLO's data.yaml and text files
    label_maps      read folders of images whose values number the objects
    labelme_json    read labelme's JSON files
    voc_palettes    read Pascal VOC's palette images
    cvat_xml        read CVAT's XML files
    brushes         write and read Label Studio's run-length code
    label_studio_json  read Label Studio's export in its own JSON
    hub_datasets    read data sets of Hugging Face's `datasets`
    class_map       keep, drop, merge and rename classes
    format_table    list the formats, and read a split of any
    outlines        turn a mask into one polygon along the edges of its pixels
    conversion      write a data set as COCO or YOLO
"""
