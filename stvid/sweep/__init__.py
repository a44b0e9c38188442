"""Many runs with one command, `python train.py -m`: proposals, results, and resuming after a kill."""
