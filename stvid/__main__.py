"""`python -m stvid` is `stvid`."""

from stvid.cli import main

if __name__ == "__main__":
    main()
