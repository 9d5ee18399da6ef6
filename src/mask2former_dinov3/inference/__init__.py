"""A trained model in use: turn one image, or a folder of images, into `Instances`.

Images come in as paths, addresses, bytes, PIL images, arrays or tensors, with a model folder, hub id or exported file
and `InferenceSettings`. `Instances` at each image's own size go out, or files with them. An image passes each module
once, in the order below.

Read in this order:

    score_calibration  the map from scores of the network to reported ones
    settings           InferenceSettings: threshold, batch size and tiles, checked once
    predictor          Predictor: loads a model and predicts on images
    image_passes       images through a network, whole or in tiles
    image_inputs       what people hold as images: arrays of any type, tensors, bytes, addresses
    image_text         images written as text: data URIs and base64
    load_images        any kind of image to an RGB array
    call_options       keywords that programs for other image processors give
    image_processing   the image processor: fits an image into the model's canvas
    compiled_predict   compiles a network with torch.compile
    network            the interface of what predicts
    onnx_model         runs an exported .onnx file behind that interface
    onnx_session       onnxruntime and OpenVINO: the one that was asked for, or an error
    torch_program      torch, which runs exported .pt2 files
    postprocess        logits to scored instances at the image's own size
    copies             instances as they are reported: calibrated scores, without copies
    views              mirrored and turned copies of an image, and their instances merged
    resize_masks       mask logits to RLE masks, in small blocks
    limit_notes        says what is not among the instances
    segment_maps       instances in Hugging Face's result format
    tiles              large images: cut, read in parts, merge
    prefetch           loads images in threads, ahead of the model
    files              many image files, for the verb `predict`
"""
