"""Prediction on more images than one machine should do: the verb `batch-predict`, on Ray Data.

Images, folders, patterns and lists of URIs come in. Parquet files with images, instances and failures go out, one of
each per shard; an interrupted job continues where it stopped.

Read in this order:

    job          one job: checks, shards, passes over what is missing until nothing is
    image_list   from inputs to one list of image URIs, each once
    reading      tasks that read images, without torch
    workers      actors that hold a model and predict batches, and one pass over batches on Ray Data
    connection   an existing cluster, or one that is started for a command
    resources    how many actors fit on a cluster beside the reading tasks
    gathering    collects batch results and writes a shard once it is complete
    shards       the output folder: Parquet files, and which images are done
"""
