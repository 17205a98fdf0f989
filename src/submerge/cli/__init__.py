"""The command line: `submerge COMMAND`; `submerge --help` lists the commands."""

from submerge.cli._app import main

__all__ = ["main"]
