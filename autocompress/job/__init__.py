"""One job from options to result: options, load, prepare, search, select, stages, finish; and finished runs."""
