"""The data set: from COCO annotations and image files to training batches, and `check-data`.

In comes the folder of a data set, or the paths of its annotation files and image folders. Out go records of images and
instances (`CocoData`), a report on everything that is wrong with them, and batches of tensors for training. Evaluation
reads annotations and results with the same parser.

Read in this order:

    array_types    types of arrays
    coco_types     types of COCO masks, results and metrics
    siblings       find images of one picture: exporters' copies, tiles, equal files
    numbers        parse numbers and ids: 12, 12.0 and "12"
    faults         collect faults of a file and report them together
    json_stream    read a large JSON file in pieces
    read_rules     what crowd regions and incomplete images mean
    coco_json      read a COCO file and parse its entries
    placeholders   leave out categories that only an exporter needs
    locate         find the image files that an annotation file names
    rle            read and write run-length codes of masks
    segmentation   parse and rasterise polygons and run-length codes
    sample_values  scale values of any type to 8 bits
    jpeg_data      decode JPEG data strictly
    jpeg_header    read the size of a plain JPEG from its first bytes
    tiff_tags      read the tags and pages of a TIFF
    stored_blocks  find damage in PNG and TIFF that GDAL or Pillow read over
    gdal_files     read parts of files, and rare kinds of TIFF, with rasterio
    pillow_pixels  take the stored values from Pillow and OpenCV
    tiff_pixels    decode a page of a TIFF
    file_kinds     tell image files from others
    extra_files    find the second file of an image, such as its depth
    images         read image files as RGB arrays
    image_folders  tell which files of a folder are images
    formats        read YOLO, label maps, labelme and other formats as COCO content
    zip_files      unpack a data set that comes as a zip file
    layout         find annotation files and image folders
    batch_parsing  parse the usual annotations many at a time
    records        images and instances in arrays that processes share
    table_builder  collect images and instances in growing arrays
    coco           read a split into checked records
    image_faults   check image files, and group what is found
    channel_statistics  measure mean and standard deviation of channels
    statistics     count images, instances, sizes
    fitting        fit images into the canvas, and make them the model's input
    transforms     move images and instances onto the canvas, with augmentation
    pixel_changes  change pixel values at random: gamma, inversion, blur, noise, JPEG
    crops          crops of images that keep their own scale, and objects at their borders
    object_sizes   measure objects on the canvas; find small ones and those that the smallest scale erases
    achievable_ap  compute the highest AP that masks of a stride can reach
    mask_arrays    measure all masks of a split as arrays
    mask_causes    find out why boxes contradict masks
    mask_checks    compare masks with the boxes, areas and picture sizes in the file
    duplicates     find objects and pictures that are there twice
    check          check a whole data set, for `check-data` and training
    fix_log        what a corrected copy changed and left
    fix_masks      correct the mask, box and area of one annotation
    fix_entries    correct the entries of one file
    fixes          write a corrected copy of a data set, for `check-data --fix`
    copy_paste     paste instances of one training image onto another
    class_balance  repeat factors of images and weights of classes against imbalance
    sampler        decide which sample comes when
    dataset        make training samples and batches
"""
