"""Turn models into other forms: an ONNX file for use without torch, or weights in the formats of other projects.

A model folder, a hub id or a file of weights comes in. A checked .onnx file, or a folder in the format of transformers,
timm, Meta or this package, goes out. A file that fails its check against torch is not written.

Read in this order:

    onnx_export    the whole export: trace, check, lower the precision, write
    onnx_graph     the graph of the exported file
    precision      half precision and 8-bit integers
    file_metadata  what the file says about its model
    check_images   the images of comparisons
    onnx_check     compares logits and instances of the file and the network
    ap_check       compares their AP
    parity         the record of comparisons beside the file
    check_export   the verb `check-export`: compares again, in any runtime
    convert        weights of backbones and Mask2Formers in other formats
"""
