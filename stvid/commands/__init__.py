"""The commands of `stvid`: one module per verb, each with `run(options)`; cli.py parses their options."""
