"""How fast a model runs on this machine: runtimes, precisions and canvases, each in a process of its own.

A model folder and `BenchmarkSettings` come in. One row per runtime, precision and canvas goes out, with latency, peak
memory, agreement with torch in float32, and AP where there are annotations. The scripts in `benchmarks/` use the same
clock, processes and tables.

Read in this order:

    runtime_names     the runtimes and their precisions, without torch
    variants          what is measured, and why a variant cannot run here
    measure_variants  the whole measurement: one row per variant
    asked_process     a process of its own that answers questions
    variant_process   what runs in that process: times, compares, scores
    variant_files     the ONNX files of the other runtimes, written by such a process, too
    runtimes          torch, onnxruntime and OpenVINO behind one interface
    timing            the clock, turns, peak memory
    machine           the hardware and the versions of packages
    row_table         rows as a Markdown table
"""
