"""Run the command line by `python -m submerge`."""

from submerge.cli import main

if __name__ == "__main__":
    main()
