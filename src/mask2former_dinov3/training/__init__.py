"""The training run: the verb `train` and what it needs beside data and model.

In comes a `TrainConfig`. Out goes the run folder: configuration, metrics, checkpoints to resume from, `best/` and
`last/` (model folders), and a report. The same run gives the same numbers on one process or several, in one go or
resumed.

Read in this order:

    train          the run from top to bottom: data, model, loop
    run            the parts of a run, its evaluations, what it saves, and what ends it
    time_budget    how many steps fit into the hours of `max_hours`
    run_description  what the model cards say about the run
    run_report     the results of the best model, and the report of the run
    run_pictures   training samples, and the same validation images after each evaluation
    launch         devices, processes and precision, and what is refused
    find_data      the splits that the options name
    drawn_split    the split that a run draws, in its folder
    shared_data    read the data set once per machine
    rehearsal      before the first step, try what the run will need
    batch_size     the largest batch that fits into memory
    device_memory  how much memory there is, and how much a step takes
    memory_advice  when memory is full: which options need less
    batches        batches read by workers; what happens when an image or a worker fails
    bad_images     how many images may be unreadable
    imbalance      repeated images and weighted classes of this run's data
    optimizer_step one optimiser step
    build_model    options and data -> model and image processor
    finetuning     which part of the backbone is trained: all, the last blocks, adapters, or nothing
    optimizer      AdamW and the schedule: learning rate and weight decay of each parameter
    ema            exponential moving average of the weights
    checkpoint     checkpoint folders: write, find, read, remove
    run_folder     what is set aside when a run goes on from an older checkpoint; the best score so far
    resume         continue at a checkpoint: compare the options, restore weights and optimiser
    metrics_log    metrics.jsonl, the tracker, and what the terminal or the log shows
    signals        stop after the current step, or in an evaluation at once, on Ctrl-C and SIGTERM
    recipe         suggest the options of a run from the data, each with its reason
    apply_recipe   give a run the options of its recipe, and judge its length
    distributed    sums over processes, and failures that reach all of them
"""
