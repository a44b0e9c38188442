"""Many runs with one command, `python train.py -m`: what to try next, what came of it, and going on after a kill."""
