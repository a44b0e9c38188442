"""What the words of `stvid` do; cli.py parses them."""
