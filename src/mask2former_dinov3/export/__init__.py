"""Turn models into other forms: an ONNX file for use without torch, or weights in the formats of other projects.

A model folder, a hub id or a file of weights comes in. A checked .onnx file, or a folder in the format of transformers,
timm, Meta or this package, goes out. A file that fails its check against torch is not written.

Read in this order:

    onnx_export   the whole export: trace, check, lower the precision, write
    onnx_graph    the graph of the exported file
    onnx_check    compares the file with the network on real images
    precision     half precision and 8-bit integers
    convert       weights of backbones and Mask2Formers in other formats
"""
