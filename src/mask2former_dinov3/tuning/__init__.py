"""A search for the best options of a training run: the verb `tune`, on Ray Tune.

A recipe, a file of options with their ranges, and a number of trials come in. Out go one run folder per trial, a table
of all trials, and the best recipe as JSON. A trial is the verb `train` in a process of its own. Its score is read from
the evaluations in its metrics.jsonl, so a search that was stopped or killed goes on from its run folders.

Read in this order:

    tune            one search: checks, trials that are left, results
    search_space    the file of a search: options and their ranges, checked; random choices by a seed
    trial_recipes   what each trial is trained with: checked before the first one starts
    trial_records   state and score of each trial: trials.json, trials.csv, the table, best_config.json
    trial_run       one trial: the process of `train`, its evaluations, its end
    trial_process   what that process runs; it ends when the process that started it ends
    ray_trials      the trial as Ray Tune sees it, the scheduler (ASHA), and what follows from a trial's end
    trial_places    what a trial reserves on the cluster
"""
